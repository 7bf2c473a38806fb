"""Class and instance ids that all scene data sets share: an instance is `class · 1000 + k`."""

UNLABELLED = 255
INSTANCES_PER_CLASS = 1000
