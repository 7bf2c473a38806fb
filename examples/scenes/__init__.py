"""The paper's own system: semantics, instances and depth from one image."""
