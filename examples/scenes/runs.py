"""One run of the comparison: a network trained with one weighting and one seed, and measured."""

from __future__ import annotations

import functools
import math
import time
from importlib.metadata import version
from typing import Any, NamedTuple

import keras
import tensorflow as tf

import keras_uncertainty_mtl
from examples.scenes import data
from examples.scenes.methods import TASKS, Run
from examples.scenes.training import SigmaTrace, evaluate, fit, seeded_network, uncertainty_model
from examples.scenes.units import from_units, to_units

# Few images for the size of the network, as in the paper: where a network for one task learns them
# by heart, sharing it helps. The best of the fixed weightings is chosen by images that are neither
# trained nor tested with.
SPLITS = {"train": "train[:20%]", "validation": "train[80%:]", "test": "test"}
BATCH_SIZE = 8

Row = dict[str, str]


class Settings(NamedTuple):
    """What is the same in all runs of a comparison."""

    dataset: str
    data_dir: str | None
    epochs: int


def prepare(settings: Settings) -> None:
    """Makes the data where they are not there yet, before several processes would do so at once."""
    _use_one_core()
    data.load(settings.dataset, list(SPLITS.values()), settings.data_dir)


def carry_out(run: Run, settings: Settings) -> Row:
    """Trains and measures a network.

    Args:
        run: How its tasks are weighted, and the seed.
        settings: What is the same in all runs.

    Returns:
        The row of the CSV file: metrics on validation and test images, in `sigma_{task}` the values
        of a `SigmaTrace` in the units that were trained in, and what the result may depend on.
        Cells of tasks without it are empty.
    """
    _use_one_core()
    start = time.perf_counter()
    scenes, (train, validation, test) = _load_once(settings.dataset, settings.data_dir)
    method, trace = run.method, SigmaTrace()
    in_other_units = "units" in method.variations
    network = seeded_network("wide" if "wide" in method.variations else "tiny", scenes, run.seed)
    if method.weights is None:
        s = method.initial_log_variance
        model = uncertainty_model(
            network,
            method.tasks,
            initial_sigma=None if s is None else math.exp(s / 2),
            approximate="approximate" in method.variations,
            update="closed_form" if "closed_form" in method.variations else "trained",
        )
        loss_weights = None
    else:
        # Stock Keras, so that the total is exactly the weighted sum of the raw losses.
        model = keras.Model(network.input, {task: network.output[task] for task in method.tasks})
        loss_weights = dict(zip(method.tasks, method.weights, strict=True))
    fit(
        model,
        train.map(to_units) if in_other_units else train,
        epochs=settings.epochs,
        batch_size=BATCH_SIZE,
        seed=run.seed,
        loss_weights=loss_weights,
        callbacks=[trace],
        verbose=0,
    )
    if in_other_units:
        model = from_units(model)
    measured = {
        "validation": evaluate(model, validation, len(scenes.class_names)),
        "test": evaluate(model, test, len(scenes.class_names)),
    }
    row = {"method": method.name, "seed": str(run.seed)}
    for split, values in measured.items():
        row |= {
            f"{split}_{task}": f"{values[task]:.5f}" if task in values else "" for task in TASKS
        }
    for task in TASKS:
        row[f"sigma_{task}"] = " ".join(f"{sigma:.4g}" for sigma in trace.sigmas.get(task, []))
    return row | {
        "seconds": f"{time.perf_counter() - start:.1f}",
        "dataset": settings.dataset,
        "train_images": str(len(train)),
        "validation_images": str(len(validation)),
        "test_images": str(len(test)),
        "epochs": str(settings.epochs),
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
        "keras_uncertainty_mtl": keras_uncertainty_mtl.__version__,
    }


def _use_one_core() -> None:
    """So that results do not depend on how many runs there are at a time, or how many cores."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@functools.cache
def _load_once(dataset: str, data_dir: str | None) -> tuple[data.Scenes, list[Any]]:
    """The data, for all runs of a process."""
    scenes = data.load(dataset, list(SPLITS.values()), data_dir)
    return scenes, scenes.splits()
