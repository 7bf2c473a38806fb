"""The features of an example, the same in every data set of scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds


def scene_features(height: int, width: int) -> tfds.features.FeaturesDict:
    """What an example holds.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.

    Returns:
        The features `image` uint8 (H, W, 3); `classes` uint8 (H, W), 255 where there is no label;
        `instances` int32 (H, W), `class · 1000 + k`, 0 where there is none; `inverse_depth` float32
        (H, W), the disparity of a stereo camera in pixels, NaN where it is not known.
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
    """What `builder.info.metadata` tells of the classes.

    Args:
        class_names: Names of the classes, by their ids.
        instance_classes: Ids of those classes whose instances are told apart.

    Returns:
        Metadata with the entries `class_names` and `instance_classes`.
    """
    return tfds.core.MetadataDict(
        class_names=list(class_names), instance_classes=list(instance_classes)
    )
