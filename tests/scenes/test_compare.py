import itertools
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from examples.scenes import compare, data, headline, methods, networks, report, runs
from examples.scenes.rows import Results, read_rows, write_rows

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")

ROOT = Path(__file__).parents[2]
TASKS = ["classes", "instances", "inverse_depth"]
ALL = "uncertainty: classes, instances, inverse_depth"
EQUAL = "fixed: 1 classes, 1 instances, 1 inverse_depth"
TIME_LIMIT = 300


def made_up_rows(seed=0):
    """A row for each run, with random numbers."""
    rng = np.random.default_rng(seed)
    return [made_up_row(run, rng) for run in methods.RUNS]


def made_up_row(run, rng):
    row = {"method": run.method.name, "seed": str(run.seed)}
    for split, task in itertools.product(("validation", "test"), TASKS):
        known = task in run.method.tasks
        # In full precision, because a mean of rounded numbers may be a tie in the table's rounding.
        row[f"{split}_{task}"] = str(rng.uniform(0.3, 0.7)) if known else ""
    for task in TASKS:
        learnt = run.method.weights is None and task in run.method.tasks
        row[f"sigma_{task}"] = "1.5 0.9 0.7" if learnt else ""
    return row | {
        "seconds": "36.0",
        "dataset": "streets/few",
        "train_images": "8",
        "validation_images": "2",
        "test_images": "4",
        "epochs": "1",
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
        "keras_uncertainty_mtl": "0.1.0",
    }


def set_metrics(rows, method, values, split="test"):
    for row in rows:
        if row["method"] == method.name:
            row |= {
                f"{split}_{task}": str(value) for task, value in zip(TASKS, values, strict=True)
            }


def tables(text):
    """The tables of a Markdown text, each a list of rows of cells."""
    found = re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in found
    ]


def test_runs_cover_the_table_the_figures_and_the_variations():
    names = [(run.method.name, run.seed) for run in methods.RUNS]
    assert len(set(names)) == len(names)
    seeds = Counter(run.method for run in methods.RUNS)
    table = {methods.ALL, methods.EQUAL, *methods.SINGLE, *methods.PAIRS, *methods.GRID}
    assert all(seeds[method] >= 3 for method in {*table, *methods.LINE, *methods.VARIATIONS})
    assert all(seeds[method] >= 1 for method in methods.STARTS)
    assert [method.tasks for method in methods.PAIRS] == list(itertools.combinations(TASKS, 2))
    assert len(methods.GRID) >= 12
    assert len(methods.LINE) >= 9
    for method in methods.LINE:
        assert sum(method.weights) == pytest.approx(1)
    varied = {variation for method in seeds for variation in method.variations}
    assert varied == {"approximate", "closed_form", "wide", "units"}


def test_the_headline_has_five_seeds_at_both_sizes():
    seeds = Counter(run.method for run in methods.RUNS)
    sizes = headline.weightings(Results(made_up_rows()))
    assert list(sizes) == ["small", "twice the filters"]
    for weightings in sizes.values():
        for label, weighting in weightings.items():
            if not label.startswith("best of"):
                assert all(seeds[method] == 5 for method in weighting.values()), label


def test_table_has_the_means_and_deviations_of_the_rows():
    rows = made_up_rows()
    frame = pd.DataFrame(rows).replace("", None)
    columns = [f"{split}_{task}" for split in ("validation", "test") for task in TASKS]
    groups = frame.astype(dict.fromkeys(columns, float)).groupby("method")[columns]
    means, deviations = groups.mean(), groups.std()

    def expected(name, task, split="test"):
        factor, digits = (100, 1) if task == "classes" else (1, 3)
        column = f"{split}_{task}"
        mean, deviation = means.loc[name, column], deviations.loc[name, column]
        return (
            "" if pd.isna(mean) else f"{factor * mean:.{digits}f} ± {factor * deviation:.{digits}f}"
        )

    main, fixed, *varied = tables(report.format_report(Results(rows)))
    assert len(main) == 2 + 3 + 2 + 4
    counts = {name: str(len(group)) for name, group in frame.groupby("method")}
    for row in main[2:] + fixed[2:]:
        weights = dict(zip(TASKS, row[1:4], strict=True))
        if row[0] == "uncertainty":
            name = "uncertainty: " + ", ".join(task for task in TASKS if weights[task] == "learnt")
        else:
            name = "fixed: " + ", ".join(
                f"{float(weight):g} {task}" for task, weight in weights.items() if weight
            )
        assert row[4:] == [*(expected(name, task) for task in TASKS), counts[name]]
    assert len(fixed) == 2 + len(methods.GRID)
    names = {
        "uncertainty": ALL,
        "approximate likelihood of classes": f"{ALL}; approximate",
        "closed form of σ for regression": f"{ALL}; closed_form",
        "from log σ² = 2": f"{ALL}, from 2",
        "other units": f"{ALL}; units",
        "equal weights, twice the filters": f"{EQUAL}; wide",
        "uncertainty, twice the filters": f"{ALL}; wide",
    }
    for task in TASKS:
        label = f"{task.replace('_', ' ')} alone"
        names[label] = f"fixed: 1 {task}"
        names[f"{label}, twice the filters"] = f"fixed: 1 {task}; wide"
    for table, split in zip(varied, ("test", "validation"), strict=True):
        assert {row[0]: row[4:] for row in table[2:]} == {
            label: [*(expected(name, task, split) for task in TASKS), counts[name]]
            for label, name in names.items()
        }


def test_the_headline_has_means_and_paired_differences_by_network_size():
    rows = made_up_rows()
    best = methods.GRID[6]
    set_metrics(rows, best, [0.99, 0.01, 0.01], split="validation")
    frame = pd.DataFrame(rows).replace("", None).set_index(["method", "seed"])
    frame = frame[[f"test_{task}" for task in TASKS]].astype(float)
    frame["test_classes"] *= 100

    means, paired = tables(report.format_headline(Results(rows)))
    expected_means, expected_paired = [], []
    for size, suffix in [("small", ""), ("twice the filters", "; wide")]:
        singles = pd.concat(
            [frame.loc[f"fixed: 1 {task}{suffix}", f"test_{task}"] for task in TASKS], axis=1
        )
        compared = {"a network for each task": singles, "equal weights": frame.loc[EQUAL + suffix]}
        if size == "small":
            compared["best of 16 fixed weightings"] = frame.loc[best.name]
        learnt = frame.loc[ALL + suffix]
        for label, values in (compared | {"uncertainty, one run": learnt}).items():
            expected_means.append([size, label, *cells(values, ""), str(len(values))])
        for label, values in compared.items():
            difference = (learnt - values).dropna()
            expected_paired.append([size, label, *cells(difference, "+"), str(len(difference))])
    assert means[2:] == expected_means
    assert paired[2:] == expected_paired


def cells(values, sign):
    """Mean ± standard deviation of each task."""
    formats = [f"{sign}.1f", f"{sign}.3f", f"{sign}.3f"]
    return [
        f"{mean:{form}} ± {deviation:{form.strip('+')}}"
        for form, mean, deviation in zip(formats, values.mean(), values.std(), strict=True)
    ]


def test_the_picture_of_the_headline_has_the_improvements_over_single_tasks():
    rows = made_up_rows()
    for variations in ((), ("wide",)):
        for task, alone in zip(TASKS, (60.0, 1.5, 0.3), strict=True):
            single = methods.Method((task,), (1.0,), variations=variations)
            set_metrics(rows, single, [alone / 100 if task == "classes" else alone] * 3)
        learnt = methods.Method(tuple(TASKS), variations=variations)
        set_metrics(rows, learnt, [0.66, 1.2, 0.33])
    figure = headline.plot_headline(Results(rows))
    for axes in figure.axes:
        labels = [container.get_label() for container in axes.containers]
        assert labels[0] == "a network for each task"
        drawn = dict(zip(labels, axes.containers, strict=True))
        for label, percent in [(labels[0], [0, 0, 0]), ("uncertainty, one run", [10, 20, -10])]:
            np.testing.assert_allclose(
                np.array(drawn[label].lines[0].get_ydata(), float), percent, atol=1e-9
            )


def test_best_fixed_weighting_is_chosen_by_validation_images():
    rows = made_up_rows()
    tested, validated = methods.GRID[3], methods.GRID[6]
    set_metrics(rows, tested, [0.99, 0.01, 0.01])
    set_metrics(rows, validated, [0.99, 0.01, 0.01], split="validation")
    assert Results(rows).best_fixed() == validated
    text = report.format_report(Results(rows))
    assert "It is inside of the grid" in text
    set_metrics(rows, tested, [0.999, 0.001, 0.001], split="validation")
    assert "It is not inside of the grid" in report.format_report(Results(rows))


def test_fixed_weightings_that_are_no_worse_at_any_task_are_named():
    rows = made_up_rows()
    set_metrics(rows, methods.ALL, [0.8, 0.2, 0.2])
    assert Results(rows).dominating(methods.ALL) == []
    assert "nowhere worse than uncertainty: none" in report.format_report(Results(rows))
    better, worse_at_one = methods.GRID[2], methods.GRID[5]
    set_metrics(rows, better, [0.8, 0.1, 0.2])
    set_metrics(rows, worse_at_one, [0.9, 0.1, 0.21])
    assert Results(rows).dominating(methods.ALL) == [better]
    assert f"than uncertainty: {better.name}." in report.format_report(Results(rows))


def test_figure_2_draws_the_means_along_the_line():
    rows = made_up_rows()
    figure = report.plot_line(Results(rows))
    frame = pd.DataFrame(rows)
    for axes, task, factor in zip(figure.axes, ["classes", "inverse_depth"], (100, 1), strict=True):
        x, y = axes.containers[0].lines[0].get_data()
        means = [
            factor * frame.loc[frame.method == method.name, f"test_{task}"].astype(float).mean()
            for method in methods.LINE
        ]
        np.testing.assert_allclose(np.array(y, float), means)
        np.testing.assert_allclose(
            np.array(x, float), [method.weights[0] for method in methods.LINE]
        )
        levels = {line.get_label(): line.get_ydata()[0] for line in axes.get_lines()}
        for label, name in [
            ("this task alone", f"fixed: 1 {task}"),
            ("uncertainty", "uncertainty: classes, inverse_depth"),
        ]:
            values = frame.loc[frame.method == name, f"test_{task}"].astype(float)
            assert levels[label] == pytest.approx(factor * values.mean())


def run_compare(directory, log, seconds=0.05):
    """Starts a comparison whose rows are made up; the runs it carries out are logged."""
    code = f"""
import sys
import time

import numpy as np
sys.path.insert(0, "tests/scenes")
from test_compare import made_up_row
from examples.scenes import compare

def pretend(run, settings):
    with open({str(log)!r}, "a") as file:
        file.write(f"{{run.method.name}}, seed {{run.seed}}\\n")
    time.sleep({seconds})
    return made_up_row(run, np.random.default_rng(run.seed))

compare.carry_out = pretend
compare.prepare = lambda settings: None
compare.main()
"""
    arguments = ["--dataset", "streets/few", "--epochs", "1", "--jobs", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--output-dir", str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(directory):
    return [(row["method"], row["seed"]) for row in read_rows(directory / "runs.csv")]


def test_a_killed_comparison_resumes(tmp_path):
    log = tmp_path / "log"
    process = run_compare(tmp_path, log)
    deadline = time.monotonic() + TIME_LIMIT
    while process.poll() is None and len(finished(tmp_path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = finished(tmp_path)
    assert 5 <= len(before) < len(methods.RUNS)

    started = log.read_text().splitlines()
    log.unlink()
    process = run_compare(tmp_path, log, seconds=0.0)
    output, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0, errors
    assert len(started) in (len(before), len(before) + 1)

    again = log.read_text().splitlines()
    assert len(again) == len(methods.RUNS) - len(before)
    assert not {f"{method}, seed {seed}" for method, seed in before} & set(again)
    rows = finished(tmp_path)
    assert rows[: len(before)] == before
    assert len(set(rows)) == len(rows) == len(methods.RUNS)
    assert re.search(rf"^{len(rows)}/{len(rows)} .*0\.0 h left\)$", output, flags=re.MULTILINE)
    assert f"{len(before)} of {len(rows)} runs are finished" in output
    for name in ("headline.png", "figure2.png", "starts.png"):
        picture = tf.io.decode_png((tmp_path / name).read_bytes())
        assert len(np.unique(picture)) > 10


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    compare.main()


def test_rows_of_other_settings_are_refused(monkeypatch, tmp_path):
    write_rows(made_up_rows(), tmp_path / "runs.csv")
    with pytest.raises(SystemExit, match="--dataset streets/few --epochs 1"):
        main(monkeypatch, "--epochs", 2, "--dataset", "streets/few", "--output-dir", tmp_path)


def test_report_of_an_unfinished_comparison_is_refused(monkeypatch, tmp_path):
    rows = made_up_rows()
    write_rows(rows[:-2], tmp_path / "runs.csv")
    options = ("--epochs", 1, "--dataset", "streets/few", "--output-dir", tmp_path, "--report")
    with pytest.raises(SystemExit, match=f"2 of {len(rows)} runs are missing"):
        main(monkeypatch, *options)
    write_rows(rows, tmp_path / "runs.csv")
    main(monkeypatch, *options)
    results = Results(rows)
    assert (tmp_path / "table.md").read_text() == report.format_report(results)
    assert (tmp_path / "headline.md").read_text() == report.format_headline(results)


@pytest.fixture
def carried_out(monkeypatch, data_dir):
    """Carries out a run with an untrained network that predicts ½ for every image.

    Returns its row, the model, and the training examples.
    """
    given = []

    def answer_one_half(model, examples, **_):
        for layer in model.layers:
            if isinstance(layer, keras.layers.Conv2D) and layer.use_bias:  # the output layers
                kernel, bias = layer.get_weights()
                layer.set_weights([0.0 * kernel, 0.0 * bias + 0.5])
        given[:] = [model, examples]

    monkeypatch.setattr(runs, "fit", answer_one_half)
    monkeypatch.setattr(runs, "_use_one_core", lambda: None)  # refused once TensorFlow has started
    settings = runs.Settings("streets/few", str(data_dir), epochs=1)
    return lambda method: (runs.carry_out(methods.Run(method, 0), settings), *given)


@pytest.mark.parametrize(
    ("method", "approximate", "update"),
    [
        (methods.ALL, False, "trained"),
        (methods.APPROXIMATE, True, "trained"),
        (methods.CLOSED_FORM, False, "closed_form"),
    ],
)
def test_variations_set_the_likelihood_and_the_update(carried_out, method, approximate, update):
    _, model, _ = carried_out(method)
    assert model.weighting.tasks["classes"].approximate is approximate
    assert model.weighting.update == update


@pytest.mark.parametrize("method", [one for one in methods.HEADLINE if "wide" in one.variations])
def test_the_wide_variation_has_twice_the_filters(carried_out, method):
    _, model, _ = carried_out(method)
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert max(layer.filters for layer in layers) == 2 * networks.TINY_FILTERS


@pytest.mark.parametrize(
    ("method", "units"),
    [
        (methods.ALL, {"instances": 1.0, "inverse_depth": 1.0}),
        (methods.OTHER_UNITS, {"instances": 0.1, "inverse_depth": 10.0}),
    ],
)
def test_targets_train_in_other_units_and_errors_are_in_pixels(
    carried_out, data_dir, method, units
):
    row, _, examples = carried_out(method)
    splits = data.load("streets/few", list(runs.SPLITS.values()), data_dir).splits()
    in_pixels = dict(zip(runs.SPLITS, splits, strict=True))

    def all_of(examples, task):
        return np.stack([targets[task] for _, targets in examples.as_numpy_iterator()])

    for task, unit in units.items():
        np.testing.assert_allclose(
            all_of(examples, task), unit * all_of(in_pixels["train"], task), rtol=1e-6
        )
        for split in ("validation", "test"):
            error = np.nanmean(np.abs(all_of(in_pixels[split], task) - 0.5 / unit))
            assert float(row[f"{split}_{task}"]) == pytest.approx(error, rel=1e-4)


def test_runs_train_and_are_measured_in_parallel_processes(data_dir, tmp_path):
    code = """
import runpy
from examples.scenes import methods, report

methods.RUNS = [methods.Run(methods.STARTS[-1], 0), methods.Run(methods.LINE[0], 0)]
report.write_report = lambda *_: None
runpy.run_module("examples.scenes.compare", run_name="__main__")
"""
    arguments = ["--dataset", "streets/few", "--data-dir", str(data_dir), "--epochs", "1"]
    subprocess.run(
        [sys.executable, "-c", code, *arguments, "--jobs", "2", "--output-dir", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=TIME_LIMIT,
    )
    rows = {row["method"]: row for row in read_rows(tmp_path / "runs.csv")}
    learnt, fixed = (rows[method.name] for method in (methods.STARTS[-1], methods.LINE[0]))
    assert (fixed["train_images"], fixed["validation_images"], fixed["test_images"]) == tuple("884")
    for split in ("validation", "test"):
        assert 0 <= float(fixed[f"{split}_classes"]) < 1
        assert float(fixed[f"{split}_inverse_depth"]) > 0
        assert fixed[f"{split}_instances"] == ""
        assert float(learnt[f"{split}_instances"]) > 0
    for task in TASKS:
        # The given σ counts as one batch beside the first, whose loss counts as at most ten times.
        assert np.exp(2.5) / 2 < float(learnt[f"sigma_{task}"].split()[0]) < np.exp(2.5) * 5.5
        assert fixed[f"sigma_{task}"] == ""
