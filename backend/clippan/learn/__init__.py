"""Training: one loop with checkpoints, and a recipe for each kind of model."""
