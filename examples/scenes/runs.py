"""Runs of the comparison: training and evaluation with one weighting and one seed."""

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
from examples.scenes.rows import Row
from examples.scenes.training import SigmaTrace, evaluate, fit, seeded_network, uncertainty_model
from examples.scenes.units import from_units, to_units

# As in the paper, the images are few for the size of the network: sharing helps where single-task
# networks overfit. Validation images choose the best fixed weighting, without the test images.
SPLITS = {"train": "train[:20%]", "validation": "train[80%:]", "test": "test"}
BATCH_SIZE = 8


class Settings(NamedTuple):
    """Settings that all runs of a comparison share."""

    dataset: str
    data_dir: str | None
    epochs: int


def prepare(settings: Settings) -> None:
    """Prepares the data once, before parallel processes each would."""
    _use_one_core()
    data.load(settings.dataset, list(SPLITS.values()), settings.data_dir)


def carry_out(run: Run, settings: Settings) -> Row:
    """Trains and measures a network.

    Args:
        run: Method and seed.
        settings: Settings that all runs share.

    Returns:
        The row of the CSV file: metrics on validation and test images, σ, settings and versions.
        `sigma_{task}` has the values of a `SigmaTrace` in training units. Cells without a value are
        empty.
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
        # In stock Keras, the total loss is exactly the weighted sum of the raw losses.
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
    """Makes results independent of the numbers of cores and of parallel runs."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@functools.cache
def _load_once(dataset: str, data_dir: str | None) -> tuple[data.Scenes, list[Any]]:
    """The data, loaded once for all runs of a process."""
    scenes = data.load(dataset, list(SPLITS.values()), data_dir)
    return scenes, scenes.splits()
