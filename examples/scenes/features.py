"""Features and class metadata that all scene data sets share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds


def scene_features(height: int, width: int) -> tfds.features.FeaturesDict:
    """The features of an example.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        - `image`: uint8 (H, W, 3).
        - `classes`: uint8 (H, W), 255 where unlabelled.
        - `instances`: int32 (H, W), `class · 1000 + k`, 0 where there is none.
        - `inverse_depth`: float32 (H, W), stereo disparity in pixels, NaN where unknown.
    """
    per_pixel = {"shape": (height, width), "encoding": "zlib"}
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(height, width, 3)),
            "classes": tfds.features.Tensor(dtype=np.uint8, **per_pixel),
            "instances": tfds.features.Tensor(dtype=np.int32, **per_pixel),
            "inverse_depth": tfds.features.Tensor(dtype=np.float32, **per_pixel),
        }
    )


def class_metadata(
    class_names: Sequence[str], instance_classes: Sequence[int]
) -> tfds.core.MetadataDict:
    """The class metadata of `builder.info.metadata`.

    Args:
        class_names: Class names, by class id.
        instance_classes: Ids of the classes with instances.

    Returns:
        Metadata with the entries `class_names` and `instance_classes`.
    """
    return tfds.core.MetadataDict(
        class_names=list(class_names), instance_classes=list(instance_classes)
    )
