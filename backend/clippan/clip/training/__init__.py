"""Training of CLIP: FarSLIP's losses, data with captions and boxes, and runs that can be stopped and resumed."""
