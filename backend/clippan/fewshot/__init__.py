"""Maps from a few samples: stacks of rasters, DiffCLIP, and the classifiers it is compared with."""
