"""Street scenes: laid out at random, ray-cast with Embree, shaded with NumPy."""
