"""Instance segmentation from centre vectors: clusters of the centres that pixels vote for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.cluster import OPTICS
from sklearn.neighbors import NearestNeighbors

from examples.scenes.labels import INSTANCES_PER_CLASS

# OPTICS is slow, so it clusters a sample if there are more votes.
MAX_VOTES = 800


def cluster_instances(
    classes: npt.NDArray[np.integer],
    vectors: npt.NDArray[np.floating],
    instance_classes: Sequence[int],
    radius: float = 2.0,
    min_pixels: int = 8,
) -> npt.NDArray[np.int32]:
    """Finds the instances of one image.

    Each pixel of a class with instances votes for a centre. OPTICS clusters a sample of the votes,
    class by class. Every pixel joins the cluster of the sampled vote nearest to its own.

    Args:
        classes: Class of each pixel, (H, W).
        vectors: Vector from each pixel to the centre of its instance, in pixels to the right and
            downwards, (H, W, 2).
        instance_classes: Ids of the classes with instances.
        radius: Radius of a vote's neighbourhood in pixels.
        min_pixels: Smallest number of pixels in an instance.

    Returns:
        Instance ids `class · 1000 + k`, (H, W); 0 where there is none.

    References:
        - [Ankerst et al., 1999](https://doi.org/10.1145/304181.304187)
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115)
    """
    height, width = classes.shape
    y, x = np.mgrid[:height, :width]
    votes = np.stack([x, y], axis=-1) + vectors
    instances = np.zeros((height, width), np.int32)
    count = np.count_nonzero(np.isin(classes, instance_classes))
    step = max(1, math.ceil(count / MAX_VOTES))
    for label in instance_classes:
        pixels = classes == label
        clusters = _clusters(votes[pixels], step, radius, min_pixels)
        numbered = label * INSTANCES_PER_CLASS + clusters
        instances[pixels] = np.where(clusters >= 0, numbered, 0)
    return instances


def _clusters(
    votes: npt.NDArray[np.floating], step: int, radius: float, min_pixels: int
) -> npt.NDArray[np.integer]:
    """The cluster of each vote, from a sample of one in `step`; -1 for no cluster."""
    min_votes = max(2, min_pixels // step)
    sample = votes[::step]
    if len(sample) < min_votes:
        return np.full(len(votes), -1)
    # The default `cluster_method` splits instances whose votes scatter.
    optics = OPTICS(min_samples=min_votes, max_eps=radius, cluster_method="dbscan", eps=radius)
    with warnings.catch_warnings():
        # Votes without any neighbour are valid here.
        warnings.filterwarnings("ignore", "All reachability values are inf")
        found = optics.fit_predict(sample)
    nearest = NearestNeighbors(n_neighbors=1).fit(sample)
    return np.asarray(found[nearest.kneighbors(votes, return_distance=False)[:, 0]])
