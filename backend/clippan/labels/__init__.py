"""Labelled places: reading, splitting, accuracy, legends and areas."""
