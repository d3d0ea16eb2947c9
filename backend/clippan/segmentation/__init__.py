"""Maps by text: class maps from what a model saw, finer edges, and polygons."""
