"""Fusion networks behind one factory.

Every network is called as ``network(up, pan, low, classical)`` with standardised float tensors on PAN's grid (see
``training.batch.Batch``): the interpolated MS (n, c, H, W), PAN (n, 1, H, W), PAN filtered with each band's MTF
(n, c, H, W) and the classical result (n, c, H, W); it returns the fused bands (n, c, H, W). The published backbones
look at the first two only.
"""
