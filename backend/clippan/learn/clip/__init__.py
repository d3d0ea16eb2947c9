"""Training of CLIP: with regions, on classes, for another sensor."""
