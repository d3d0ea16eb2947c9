"""Search: the tiles of rasters and their vectors in a store, and how well they fit what is searched for."""
