"""What all trainings share: a step of an optimiser, and a run in a folder that can be stopped and gone on with."""
