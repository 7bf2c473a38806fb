"""How classes and instances are numbered, the same in every data set of scenes."""

# The class of a pixel that has no label.
UNLABELLED = 255
# The instances of a class are numbered from `class · INSTANCES_PER_CLASS` on.
INSTANCES_PER_CLASS = 1000
