"""Rendering of random street scenes: ray casting with Embree, shading with NumPy."""
