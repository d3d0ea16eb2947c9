"""Pansharpening: sensors, methods, metrics, and the jobs that apply them to files."""
