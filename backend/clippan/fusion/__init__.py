"""Pansharpening: registration, filters, classical methods, networks, and figures of quality."""
