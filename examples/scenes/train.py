"""Training of the paper's three tasks with uncertainty weighting, with held-out metrics and plots.

The tasks are the class of each pixel, the vector to its instance's centre, and its inverse depth.
The data are Cityscapes, or street scenes that are rendered at the first run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from examples.command_line import format_table, positive
from examples.scenes import data
from examples.scenes.headline import headline_table
from examples.scenes.instances import cluster_instances
from examples.scenes.metrics import METRIC_NAMES
from examples.scenes.pictures import plot_scenes, plot_weighting
from examples.scenes.rows import Results, read_rows
from examples.scenes.training import (
    SigmaTrace,
    evaluate,
    fit,
    seeded_network,
    uncertainty_model,
)
from examples.serving import check_serving
from keras_uncertainty_mtl import MultiTaskModel

SPLITS = ["train", "test"]
PICTURED_SCENES = 5


def main() -> None:
    options = parse_arguments()
    try:
        scenes = data.load(options.dataset, SPLITS, options.data_dir)
    except (AssertionError, OSError, ValueError) as error:
        # TensorFlow Datasets raises AssertionError if the archives of Cityscapes are missing.
        sys.exit(str(error))
    train, test = scenes.splits()
    options.output_dir.mkdir(parents=True, exist_ok=True)

    network = seeded_network(options.network, scenes, options.seed)
    model = uncertainty_model(network, list(METRIC_NAMES))
    trace = SigmaTrace()
    fit(
        model,
        train,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        callbacks=[trace],
    )
    print(f"\nHeld out: {len(test)} of {len(train) + len(test)} images, seed {options.seed}\n")
    print(table(model, evaluate(model, test, len(scenes.class_names))))

    figure = plot_weighting(trace.sigmas, model.weighting.tasks)
    figure.savefig(options.output_dir / "weighting.png", dpi=150)
    pictured = scenes.examples[SPLITS.index("test")].take(PICTURED_SCENES)
    truth = {
        feature: np.stack([example[feature] for example in pictured.as_numpy_iterator()])
        for feature in pictured.element_spec
    }
    figure = plot_scenes(
        truth, predict(model, truth["image"], scenes.instance_classes), scenes.class_names
    )
    figure.savefig(options.output_dir / "scenes.png", dpi=150)

    model.export(options.output_dir / "saved_model", verbose=False)
    check_serving(model, options.output_dir / "saved_model", truth["image"].astype("float32"))
    print(f"\nIn {options.output_dir}: scenes.png, weighting.png, saved_model")
    print(f"\n{comparison()}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--dataset",
        default="streets",
        help="%(default)s (the default), rendered at the first run; streets/32x64, with a quarter "
        "of the pixels; or cityscapes, from its archives",
    )
    add(
        "--data-dir",
        help="data directory of TensorFlow Datasets (TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )
    add(
        "--network",
        choices=["tiny", "paper"],
        default="tiny",
        help="%(default)s (the default) for a CPU, or the paper's for a GPU",
    )
    add(
        "--epochs",
        type=positive,
        default=10,
        help="training epochs (%(default)s)",
    )
    add("--batch-size", type=positive, default=8, help="images per training step (%(default)s)")
    add(
        "--seed",
        type=int,
        default=0,
        help="seed of the initial weights and of the order of the images (%(default)s)",
    )
    add(
        "--output-dir",
        type=Path,
        default=Path("scenes_output"),
        help="directory of the figures and the SavedModel (%(default)s)",
    )
    return parser.parse_args()


def table(model: MultiTaskModel, measured: dict[str, float]) -> str:
    sigmas, weights = model.weighting.sigmas(), model.weighting.task_weights()
    rows = [["task", "held-out metric", "", "σ", "weight"]]
    for task, name in METRIC_NAMES.items():
        value = f"{100 * measured[task]:.1f}" if task == "classes" else f"{measured[task]:.3f}"
        numbers = (f"{sigmas[task]:.3g}", f"{weights[task]:.3g}")
        rows.append([task.replace("_", " "), name, value, *numbers])
    return format_table(rows, text_columns=2)


def comparison() -> str:
    """The headline of the finished comparison on small streets, and the path of its picture."""
    results = Path(__file__).with_name("results")
    rows = read_rows(results / "runs.csv")
    headline = format_table(headline_table(Results(rows)), text_columns=2)
    return (
        f"The comparison of weightings on {rows[0]['dataset']}, mean ± standard deviation over "
        f"seeds:\n\n{headline}\n\nIts picture: {results / 'headline.png'}"
    )


def predict(model: MultiTaskModel, images: Any, instance_classes: list[int]) -> dict[str, Any]:
    """Predicted features of the scenes: classes, clustered instances, and inverse depth."""
    outputs = model.predict_on_batch(images)
    classes = outputs["classes"].argmax(axis=-1)
    instances = [
        cluster_instances(*scene, instance_classes)
        for scene in zip(classes, outputs["instances"], strict=True)
    ]
    return {
        "classes": classes,
        "instances": np.stack(instances),
        "inverse_depth": outputs["inverse_depth"][..., 0],
    }


if __name__ == "__main__":
    main()
