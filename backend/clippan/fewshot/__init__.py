"""Maps from a few samples: windows, DiffCLIP and its rivals, accuracy."""
