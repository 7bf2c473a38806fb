"""Cityscapes at the size of the paper's "tiny Cityscapes", from the official archives.

The `cityscapes` of TensorFlow Datasets has classes, instances and disparity in configurations of
their own, at the full size, and not as the benchmark's 19 classes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_datasets as tfds
from cityscapesscripts.helpers.labels import id2label, trainId2label

from examples.scenes.features import class_metadata, scene_features
from examples.scenes.labels import INSTANCES_PER_CLASS, UNLABELLED

SITE = "https://www.cityscapes-dataset.com/downloads/"
# The official test split has no public labels, so that the official validation split is the test
# split here, as it is in the paper.
SPLITS = {"train": "train", "test": "val"}

TRAIN_IDS = sorted(train_id for train_id in trainId2label if train_id not in (-1, UNLABELLED))
CLASS_NAMES = [trainId2label[train_id].name for train_id in TRAIN_IDS]
INSTANCE_CLASSES = [train_id for train_id in TRAIN_IDS if trainId2label[train_id].hasInstances]
# From the ids in the files to those of the classes.
TRAIN_ID_OF_ID = np.full(256, UNLABELLED, np.uint8)
for _id, _label in id2label.items():
    if _id >= 0 and _label.trainId in TRAIN_IDS:
        TRAIN_ID_OF_ID[_id] = _label.trainId


@dataclass(frozen=True)
class Package:
    """One of the archives, and how its files are named.

    Args:
        archive: Name of the archive.
        folder: The folder that its files are in.
        suffix: What the names of its files end with, after `{city}_{sequence}_{frame}`.
    """

    archive: str
    folder: str
    suffix: str

    def member(self, split: str, scene: str) -> str:
        """The name of a scene's file."""
        city = scene.split("_")[0]
        return f"{self.folder}/{split}/{city}/{scene}{self.suffix}"


IMAGES = Package("leftImg8bit_trainvaltest.zip", "leftImg8bit", "_leftImg8bit.png")
CLASSES = Package("gtFine_trainvaltest.zip", "gtFine", "_gtFine_labelIds.png")
INSTANCES = Package("gtFine_trainvaltest.zip", "gtFine", "_gtFine_instanceIds.png")
DISPARITY = Package("disparity_trainvaltest.zip", "disparity", "_disparity.png")


@dataclass
class CityscapesConfig(tfds.core.BuilderConfig):
    """Cityscapes at one size.

    Args:
        height: Of the images in pixels.
        width: Of the images in pixels.
    """

    height: int = 128
    width: int = 256


class CityscapesScenes(tfds.core.GeneratorBasedBuilder):
    """Cityscapes with classes, instances and disparity, read straight out of the archives.

    Example:

    ```python
    from examples.scenes import cityscapes  # tells TensorFlow Datasets of it

    train, test = tfds.load("cityscapes_scenes", split=["train", "test"])
    ```

    References:
        - [Cordts et al., 2016](https://arxiv.org/abs/1604.01685)
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: list[CityscapesConfig] = [  # noqa: RUF012 - the name and type are TFDS's
        CityscapesConfig(name="128x256", description="The paper's tiny Cityscapes."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Get {IMAGES.archive}, {CLASSES.archive} and {DISPARITY.archive} from {SITE} and leave "
        "them packed."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Cityscapes with classes, instances and inverse depth.",
            homepage="https://www.cityscapes-dataset.com",
            features=scene_features(self.builder_config.height, self.builder_config.width),
            metadata=class_metadata(CLASS_NAMES, INSTANCE_CLASSES),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        archives = {
            package.archive: Archive(Path(dl_manager.manual_dir) / package.archive)
            for package in (IMAGES, CLASSES, DISPARITY)
        }
        return {name: self._generate_examples(archives, split) for name, split in SPLITS.items()}

    def _generate_examples(
        self, archives: dict[str, Archive], split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        size = (self.builder_config.height, self.builder_config.width)

        def read(package: Package, scene: str, dtype: tf.DType) -> tf.Tensor:
            return archives[package.archive].read_png(package.member(split, scene), dtype)

        for scene in archives[IMAGES.archive].scenes(IMAGES, split):
            image = read(IMAGES, scene, tf.uint8)
            classes = _nearest(read(CLASSES, scene, tf.uint8), size)
            instances = _nearest(read(INSTANCES, scene, tf.uint16), size)
            disparity = read(DISPARITY, scene, tf.uint16)
            # A disparity is a distance in pixels, and so shrinks with the width of the image.
            scale = size[1] / int(disparity.shape[1])
            yield (
                scene,
                {
                    "image": _averaged(image, size),
                    "classes": TRAIN_ID_OF_ID[classes],
                    "instances": instance_ids(instances),
                    "inverse_depth": disparity_in_pixels(_nearest(disparity, size)) * scale,
                },
            )


class Archive:
    """One of the official archives.

    Args:
        path: Where it is.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, or not what its name says.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            raise FileNotFoundError(self._advice("is missing"))
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(self._advice("is damaged")) from error

    def scenes(self, package: Package, split: str) -> list[str]:
        """The scenes of a split, `{city}_{sequence}_{frame}`, in order.

        Args:
            package: What the archive is supposed to hold.
            split: An official split: `train` or `val`.

        Returns:
            Sorted list of names.

        Raises:
            ValueError: If there are none.
        """
        prefix = f"{package.folder}/{split}/"
        scenes = [
            name.rsplit("/", 1)[1].removesuffix(package.suffix)
            for name in self._zip.namelist()
            if name.startswith(prefix) and name.endswith(package.suffix)
        ]
        if not scenes:
            raise ValueError(self._advice(f"is another package, without '{prefix}'"))
        return sorted(scenes)

    def read_png(self, member: str, dtype: tf.DType) -> tf.Tensor:
        """The pixels of a PNG file, (H, W, channels).

        Args:
            member: Its name in the archive.
            dtype: `tf.uint8` or `tf.uint16`.

        Returns:
            Tensor of that dtype.

        Raises:
            ValueError: If it is not there, or cannot be read.
        """
        try:
            return tf.io.decode_png(self._zip.read(member), dtype=dtype)
        except KeyError as error:
            raise ValueError(self._advice(f"is another package, without '{member}'")) from error
        except (zipfile.BadZipFile, zlib.error, EOFError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(self._advice(f"is damaged at '{member}'")) from error

    def _advice(self, problem: str) -> str:
        return (
            f"The Cityscapes archive {self._path} {problem}: get {self._path.name} from {SITE} "
            f"and put it, packed as it is, into {self._path.parent}."
        )


def instance_ids(ids: npt.NDArray[np.uint16]) -> npt.NDArray[np.int32]:
    """Instance ids as `class · 1000 + k`, from those of the files.

    Args:
        ids: In a file, `id · 1000 + k` for an instance of a label, and the label's id alone for
            groups and for what has no instances.

    Returns:
        The ids with that of the class in place of that of the label; 0 for what is no instance or
        of no class.
    """
    label, number = np.divmod(ids.astype(np.int32), INSTANCES_PER_CLASS)
    classes = TRAIN_ID_OF_ID[label].astype(np.int32)
    # Label 0, which is what an id below 1000 comes to, has no class.
    return np.where(classes != UNLABELLED, classes * INSTANCES_PER_CLASS + number, 0).astype(
        np.int32
    )


def disparity_in_pixels(encoded: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Disparity in pixels of the original image: `(p - 1) / 256`, NaN where `p` is 0.

    Args:
        encoded: The values `p` of a file.

    Returns:
        Array of the same shape.
    """
    values = (encoded.astype(np.float32) - 1.0) / 256.0
    return np.where(encoded > 0, values, np.float32(np.nan))


def _averaged(image: tf.Tensor, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    resized = tf.image.resize(image, size, method="area")
    return np.rint(resized.numpy()).astype(np.uint8)


def _nearest(values: tf.Tensor, size: tuple[int, int]) -> npt.NDArray[Any]:
    return np.asarray(tf.image.resize(values, size, method="nearest").numpy()[..., 0])
