"""Makes the starter CLIP: a small CLIP for land cover and land use, trained from freely licensed data only."""
