"""The examples in the package's docstrings run.

An example is a block fenced as ```python, or one with `>>>`, whose results are compared too. It may
use all public names of the package, and those that `namespace` provides.
"""

import ast
import doctest
import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_uncertainty_mtl
from keras_uncertainty_mtl import Categorical, Laplace, MultiTaskModel, plotting, reliability

pytestmark = pytest.mark.backends("tensorflow", reason="PyTorch exports no SavedModel")

PACKAGE = Path(keras_uncertainty_mtl.__file__).parent


def examples_of(docstring):
    fenced = re.findall(r"^```python\n(.*?)^```", docstring, flags=re.DOTALL | re.MULTILINE)
    return fenced or ([docstring] if ">>>" in docstring else [])


def all_examples():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                name = f"{path.relative_to(PACKAGE)}:{getattr(node, 'name', '')}"
                for example in examples_of(ast.get_docstring(node) or ""):
                    yield pytest.param(name, example, id=name)


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """Names of a small model of two tasks and its data."""
    monkeypatch.chdir(tmp_path)  # examples save files
    rng = np.random.default_rng(0)
    x, depths, labels = rng.random((20, 4, 4, 1)), rng.random(20), rng.integers(3, size=20)
    image = keras.Input((4, 4, 1), name="image")
    features = keras.layers.Flatten()(image)
    depth, logits = keras.layers.Dense(1)(features), keras.layers.Dense(3)(features)
    tasks = {"depth": Laplace(), "classes": Categorical()}
    model = MultiTaskModel(image, {"depth": depth, "classes": logits}, tasks)
    model.compile("adam")
    y = {"depth": depths, "classes": labels}
    return {
        **vars(keras_uncertainty_mtl) | vars(plotting) | vars(reliability),
        **{"keras": keras, "np": np, "__name__": "example"},
        **{"image": image, "depth": depth, "logits": logits, "model": model},
        **{"x": x, "y": y, "x_held_out": x, "y_held_out": y},
        **{"y1": depths, "y2": labels, "labels": labels},
    }


@pytest.mark.parametrize(("name", "example"), list(all_examples()))
def test_an_example_runs(name, example, namespace):
    if ">>>" not in example:
        exec(compile(example, name, "exec"), namespace)
        return
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(doctest.DocTestParser().get_doctest(example, namespace, name, None, None))
    assert not runner.failures


@pytest.mark.parametrize("name", keras_uncertainty_mtl.__all__)
def test_every_public_name_has_an_example(name):
    assert examples_of(inspect.getdoc(getattr(keras_uncertainty_mtl, name)))
