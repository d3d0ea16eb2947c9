"""Search: rasters are cut into tiles, the tiles embedded and stored, and the store asked for what fits a text."""
