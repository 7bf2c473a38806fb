import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy.spatial.transform import Rotation

from examples.scenes import streets
from examples.scenes.rendering.camera import Camera, RayCaster
from examples.scenes.rendering.layout import random_street
from examples.scenes.rendering.scene import render
from examples.scenes.rendering.shapes import Assembly, Material, Surface, box, pose
from examples.scenes.rendering.stereo import measured_disparity

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")

HEIGHT, WIDTH = 32, 64
CONFIG = {"height": HEIGHT, "width": WIDTH, "train_images": 6, "test_images": 2}
DIGEST = """
import hashlib
from examples.scenes.rendering.scene import render

example = render((3, 0, 7), 32, 64)
print(hashlib.sha256(b"".join(example[key].tobytes() for key in sorted(example))).hexdigest())
"""


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    config = streets.StreetsConfig(name="few", seed=5, **CONFIG)
    builder = tfds.builder("streets", config=config, data_dir=tmp_path_factory.mktemp("tfds"))
    builder.download_and_prepare()
    return builder


@pytest.fixture(scope="module")
def examples(builder):
    splits = builder.as_dataset(split="train"), builder.as_dataset(split="test")
    return [list(split.as_numpy_iterator()) for split in splits]


def test_splits_have_the_configured_number_and_size_of_images(examples):
    train, test = examples
    assert (len(train), len(test)) == (6, 2)
    for example in train + test:
        assert {key: (value.shape, value.dtype) for key, value in example.items()} == {
            "image": ((HEIGHT, WIDTH, 3), np.uint8),
            "classes": ((HEIGHT, WIDTH), np.uint8),
            "instances": ((HEIGHT, WIDTH), np.int32),
            "inverse_depth": ((HEIGHT, WIDTH), np.float32),
        }


def test_all_images_differ(examples):
    images = {example["image"].tobytes() for split in examples for example in split}
    assert len(images) == 8


def test_images_show_all_classes_and_no_unknown_one(builder, examples):
    seen = np.unique([example["classes"] for split in examples for example in split])
    class_names = builder.info.metadata["class_names"]
    assert {*range(len(class_names)), 255} >= set(seen.tolist())
    assert len(class_names) == 9
    assert len(seen) >= 8


def test_instance_ids_match_the_classes(builder, examples):
    for example in examples[0]:
        classes, instances = example["classes"], example["instances"]
        has_instances = np.isin(classes, builder.info.metadata["instance_classes"])
        np.testing.assert_array_equal(instances != 0, has_instances)
        np.testing.assert_array_equal(instances[has_instances] // 1000, classes[has_instances])


def test_a_seed_gives_the_same_bytes_in_another_process():
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", DIGEST], cwd=root, check=True, capture_output=True, text=True
    )
    example = render((3, 0, 7), 32, 64)
    here = hashlib.sha256(b"".join(example[key].tobytes() for key in sorted(example)))
    assert other.stdout.strip() == here.hexdigest()


def test_a_seed_gives_the_same_data_set(examples, tmp_path):
    def images(seed):
        config = streets.StreetsConfig(name="again", seed=seed, **CONFIG)
        builder = tfds.builder("streets", config=config, data_dir=tmp_path / str(seed))
        builder.download_and_prepare()
        return [
            {key: value.tobytes() for key, value in example.items()}
            for example in builder.as_dataset(split="train").as_numpy_iterator()
        ]

    first = [{key: value.tobytes() for key, value in e.items()} for e in examples[0]]
    assert images(5) == first
    assert images(6) != first


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_road_has_the_depth_of_the_ground_plane(seed):
    example = render((seed,), HEIGHT, WIDTH)
    street = random_street(np.random.default_rng((seed,)))
    # From axes to the right, ahead and upwards: roll about ahead, pitch about right, yaw about up.
    turn = Rotation.from_euler("ZXY", [-street.yaw, -street.pitch, street.roll])
    row, column = np.nonzero(example["classes"] == 0)
    focal = 1.1 * WIDTH
    rays = np.stack(
        [
            (column + 0.5 - WIDTH / 2) / focal,
            np.ones(len(row)),
            -(row + 0.5 - HEIGHT / 2) / focal,
        ],
        axis=1,
    )
    depth = -street.camera[2] / turn.apply(rays)[:, 2]
    measured = example["inverse_depth"][row, column]
    error = np.abs(measured - focal * 0.21 / depth)
    assert np.isfinite(error).mean() > 0.3
    assert np.nanpercentile(error, 95) < 0.2


def test_the_sky_has_no_depth_and_other_surfaces_have_holes():
    share = []
    for seed in range(4):
        example = render((seed,), HEIGHT, WIDTH)
        unknown = np.isnan(example["inverse_depth"])
        assert unknown[example["classes"] == 6].all()
        share.append(unknown[example["classes"] != 6].mean())
    assert 0.03 < np.mean(share) < 0.4


def test_pixels_hidden_from_the_second_camera_have_no_depth():
    height, width = 40, 80
    wall_depth, box_depth = 20.0, 5.0
    surface = Surface(0, Material.PLAIN, (0.5, 0.5, 0.5))
    assembly = Assembly()
    assembly.add(box(), surface, pose((0.0, wall_depth + 0.5, -50.0), (100.0, 1.0, 100.0)))
    assembly.add(box(), surface, pose((0.0, box_depth + 0.5, -50.0), (1.0, 1.0, 100.0)))
    camera = Camera(np.zeros(3), np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]))
    caster = RayCaster(assembly)
    hits = caster.first_hits(camera.position, camera.rays(height, width).reshape(-1, 3))
    depth = hits.depth.reshape(height, width)
    rng = np.random.default_rng(0)
    textured = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    disparity = measured_disparity(rng, caster, camera, depth, textured)

    focal = 1.1 * width
    shadow = focal * 0.21 * (1 / box_depth - 1 / wall_depth)
    left_edge = width / 2 - 0.5 * focal / box_depth
    right_edge = width / 2 + 0.5 * focal / box_depth
    columns = np.arange(width) + 0.5
    hidden = (columns > left_edge - shadow + 0.5) & (columns < left_edge - 0.5)
    assert hidden.sum() >= 2
    assert np.isnan(disparity[:, hidden]).all()
    beside = (columns > right_edge + 0.5) & (columns < right_edge + shadow - 0.5)
    assert np.isfinite(disparity[:, beside]).mean() > 0.9
