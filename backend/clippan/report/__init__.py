"""Reports as HTML pages that need no other file: templates, and the pictures in them."""
