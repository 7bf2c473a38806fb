"""Measurements that README quotes, each a script that writes its table to `results/`."""
