import io
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from examples.scenes import cityscapes

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")

HEIGHT, WIDTH = 8, 16
BLOCK = 4  # the archives' images are larger by this factor
ARCHIVES = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "disparity_trainvaltest.zip")
SCENES = {
    "train": ["aachen_000001_000019", "ulm_000003_000019"],
    "val": ["munster_000002_000019"],
    "test": ["berlin_000000_000019"],
}
# From the ids of the files to class ids, after the table of the data set's authors.
TRAIN_IDS = {0: 255, 3: 255, 7: 0, 8: 1, 11: 2, 17: 5, 23: 10, 24: 11, 26: 13, 29: 255, 33: 18}
# From the instance ids of the files to `class * 1000 + k`.
INSTANCE_IDS = {
    24: 0,
    26: 0,
    7: 0,
    24000: 11000,
    24002: 11002,
    26013: 13013,
    29001: 0,
    33001: 18001,
}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def magnified(pixels):
    return pixels.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def scene_pixels(name):
    rng = np.random.default_rng(list(name.encode()))
    size = (HEIGHT, WIDTH)
    return {
        "leftImg8bit": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "labelIds": rng.choice(list(TRAIN_IDS), size).astype(np.uint8),
        "instanceIds": rng.choice(list(INSTANCE_IDS), size).astype(np.uint16),
        "disparity": rng.choice([0, 1, 257, 12801, 32257], size).astype(np.uint16),
    }


@pytest.fixture
def manual_dir(tmp_path):
    """Small archives with the official names, layout and encodings."""
    directory = tmp_path / "manual"
    directory.mkdir()
    images, labels, disparities = (zipfile.ZipFile(directory / name, "w") for name in ARCHIVES)
    for archive in (images, labels, disparities):
        archive.writestr("README", "As in the official archives.")
        archive.writestr("license.txt", "As in the official archives.")
    for split, scenes in SCENES.items():
        for scene in scenes:
            city = scene.split("_")[0]
            pixels = {key: png(magnified(value)) for key, value in scene_pixels(scene).items()}
            images.writestr(
                f"leftImg8bit/{split}/{city}/{scene}_leftImg8bit.png", pixels["leftImg8bit"]
            )
            for kind in ("labelIds", "instanceIds"):
                labels.writestr(f"gtFine/{split}/{city}/{scene}_gtFine_{kind}.png", pixels[kind])
            labels.writestr(f"gtFine/{split}/{city}/{scene}_gtFine_polygons.json", "{}")
            labels.writestr(f"gtFine/{split}/{city}/{scene}_gtFine_color.png", pixels["labelIds"])
            disparities.writestr(
                f"disparity/{split}/{city}/{scene}_disparity.png", pixels["disparity"]
            )
    for archive in (images, labels, disparities):
        archive.close()
    return directory


def prepared(manual_dir, tmp_path):
    config = cityscapes.CityscapesConfig(name="small", height=HEIGHT, width=WIDTH)
    builder = tfds.builder("cityscapes_scenes", config=config, data_dir=tmp_path / "data")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
    )
    return builder


def test_examples_have_the_data_of_the_archives(manual_dir, tmp_path):
    builder = prepared(manual_dir, tmp_path)
    for split, official in (("train", "train"), ("test", "val")):
        examples = list(builder.as_dataset(split=split).as_numpy_iterator())
        by_image = {example["image"].tobytes(): example for example in examples}
        assert len(by_image) == len(SCENES[official])
        for scene in SCENES[official]:
            pixels = scene_pixels(scene)
            example = by_image[pixels["leftImg8bit"].tobytes()]
            np.testing.assert_array_equal(
                example["classes"], np.vectorize(TRAIN_IDS.get)(pixels["labelIds"])
            )
            np.testing.assert_array_equal(
                example["instances"], np.vectorize(INSTANCE_IDS.get)(pixels["instanceIds"])
            )
            # A quarter of (p - 1) / 256, because the image has a quarter of the width.
            disparity = {0: np.nan, 1: 0.0, 257: 0.25, 12801: 12.5, 32257: 31.5}
            np.testing.assert_allclose(
                example["inverse_depth"], np.vectorize(disparity.get)(pixels["disparity"])
            )


def test_classes_are_the_19_of_the_benchmark(manual_dir, tmp_path):
    metadata = prepared(manual_dir, tmp_path).info.metadata
    assert len(metadata["class_names"]) == 19
    assert metadata["class_names"][0] == "road"
    assert metadata["class_names"][18] == "bicycle"
    assert metadata["instance_classes"] == list(range(11, 19))


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def spoil(path):
    content = path.read_bytes()
    at = content.index(b"IDAT") + 20
    path.write_bytes(
        content[:at] + bytes(byte ^ 255 for byte in content[at : at + 8]) + content[at + 8 :]
    )


def take_another(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gtCoarse/train_extra/ulm/ulm_000003_000019_gtCoarse_labelIds.png", b"")


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (remove, "is missing"),
        (truncate, "is damaged"),
        (spoil, "is damaged"),
        (take_another, "is another package"),
    ],
)
def test_an_unusable_archive_is_named(manual_dir, tmp_path, name, damage, problem):
    damage(manual_dir / name)
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        prepared(manual_dir, tmp_path)
    message = str(error.value)
    assert problem in message
    assert f"get {name} from https://www.cityscapes-dataset.com" in message
    assert "\n" not in message
