"""Measurements that the documentation quotes, each a script that writes its table to `results/`."""
