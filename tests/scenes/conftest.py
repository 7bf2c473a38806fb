"""Provides a small data set of rendered streets."""

import pytest
import tensorflow_datasets as tfds

from examples.scenes import streets


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A data directory with the data set `streets/few`: 40 and 4 images of 32×64 pixels."""
    directory = tmp_path_factory.mktemp("tfds")
    config = streets.StreetsConfig(
        name="few", height=32, width=64, train_images=40, test_images=4, seed=1
    )
    tfds.builder("streets", config=config, data_dir=directory).download_and_prepare()
    return directory
