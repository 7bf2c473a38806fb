"""σ on the data, network and budget of the notebook of the paper's author.

    python -m benchmarks.notebook

Two regressions of one input have noise of σ 10 and 1: y₁ = 2·x + 8 and y₂ = 3·x + 3. The 100 rows
are the notebook's own draw. A hidden layer of 1,024 units and two outputs with a ReLU train for
2,000 epochs of 5 batches, with Adam. σ can only know the errors that the network leaves on these
rows. The ReLU cuts off the targets below 0, so the network is measured without it too.

The notebook itself prints 7.97 and 1.81, but decodes with `exp(√s)`. Its σ = exp(s / 2) is 8.61 and
1.19, and the errors that its network leaves are 9.94 and 1.19.

References:
    - `multi-task-learning-example.ipynb` of https://github.com/yaringal/multi-task-learning-example
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from benchmarks.harness import one_thread_pool
from benchmarks.methods.losses import TrainedRule
from examples.batches import shuffled
from examples.command_line import markdown
from keras_uncertainty_mtl import Gaussian, MultiTaskModel

SIGMAS = {"y1": 10.0, "y2": 1.0}
LINES = {"y1": (2.0, 8.0), "y2": (3.0, 3.0)}
OUTPUTS = {"relu": "a ReLU, as there", "linear": "no ReLU"}
ROWS, BATCH, EPOCHS, UNITS = 100, 20, 2000, 1024
PACKAGE, PLAIN = "this package", "the notebook's layer"


class NotebookLoss(TrainedRule):
    """`Σ exp(-s)·L + s`: twice the Gaussian likelihood, with s = log σ² trained like a weight."""

    def weigh(self, losses: Any) -> Any:
        s = ops.convert_to_tensor(self.s)
        return ops.sum(ops.exp(-s) * losses + s)


def data() -> tuple[Any, dict[str, Any]]:
    """The draw of the notebook, which seeds NumPy's old generator with 0."""
    random = np.random.RandomState(0)
    x = random.randn(ROWS, 1)
    return x.astype("float32"), {
        task: (slope * x + offset + SIGMAS[task] * random.randn(ROWS, 1)).astype("float32")
        for task, (slope, offset) in LINES.items()
    }


def network(output: str, x: Any) -> keras.Model:
    """A new network. An output that is 0 on all rows would never train: it is drawn again."""
    while True:
        inputs = keras.Input((1,))
        hidden = layers.Dense(UNITS, activation="relu")(inputs)
        outputs = {task: layers.Dense(1, activation=output)(hidden) for task in SIGMAS}
        drawn = keras.Model(inputs, outputs)
        if all(np.any(answers) for answers in drawn.predict(x, verbose=0).values()):
            return drawn


def run(arguments: tuple[str, str, int, int]) -> list[dict[str, Any]]:
    """Trains once, and returns a row for each task."""
    output, method, seed, epochs = arguments
    x, y = data()
    keras.utils.set_random_seed(seed)
    tasks = {task: Gaussian() for task in SIGMAS}
    built = network(output, x)
    model: Any = (
        MultiTaskModel(built.input, built.output, tasks)
        if method == PACKAGE
        else NotebookLoss(built, tasks)
    )
    model.compile(keras.optimizers.Adam(), steps_per_execution=ROWS // BATCH)
    model.fit(shuffled(x, y, BATCH, seed), epochs=epochs, shuffle=False, verbose=0)
    if method == PACKAGE:
        sigmas = model.weighting.sigmas()
    else:
        sigmas = dict(zip(SIGMAS, np.exp(model.s.numpy() / 2), strict=True))
    answers = built.predict(x, verbose=0)
    return [
        {
            "outputs": OUTPUTS[output],
            "method": method,
            "seed": seed,
            "task": task,
            "sigma": float(sigmas[task]),
            "error": float(np.sqrt(np.mean((answers[task] - y[task]) ** 2))),
            "noise": noise,
        }
        for task, noise in SIGMAS.items()
    ]


def report(rows: pd.DataFrame) -> str:
    """Returns σ beside the errors that the network leaves, and their worst distance in percent."""
    lines = []
    for keys, of_task in rows.groupby(["outputs", "method", "task"], sort=False):
        worst = [
            100 * (of_task["sigma"] / of_task[name] - 1).abs().max() for name in ("error", "noise")
        ]
        cells = [
            f"{of_task[name].mean():.3f} ± {of_task[name].std():.3f}" for name in ("sigma", "error")
        ]
        noise = f"{of_task['noise'].iloc[0]:g}"
        lines.append([*keys, noise, *cells, *(f"{each:.1f}" for each in worst)])
    header = ["outputs", "", "task", "noise", "σ", "root mean squared error"]
    return markdown(
        [*header, "σ off the error, at worst, %", "σ off the noise, at worst, %"], lines
    )


def main() -> None:
    """Prints the table, and writes it as Markdown and every run as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()

    runs = [
        (output, method, seed, arguments.epochs)
        for output in OUTPUTS
        for method in (PACKAGE, PLAIN)
        for seed in range(arguments.seeds)
    ]
    with one_thread_pool(arguments.workers) as pool:
        rows = pd.DataFrame([row for measured in pool.map(run, runs, 1) for row in measured])
    arguments.results.mkdir(parents=True, exist_ok=True)
    rows.to_csv(arguments.results / "notebook.csv", index=False)
    text = report(rows)
    (arguments.results / "notebook.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
