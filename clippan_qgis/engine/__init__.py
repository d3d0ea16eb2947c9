"""The engine as the plugin sees it: its Python, its environment, its process."""
