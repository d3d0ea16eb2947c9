"""Training of fusion networks, supervised one scale down and unsupervised at full resolution."""
