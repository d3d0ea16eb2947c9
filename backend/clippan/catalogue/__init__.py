"""What ships as data: sensors, models, prompts, the colours of bands."""
