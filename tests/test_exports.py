"""Exported models answer in their own runtimes as they do in Keras."""
