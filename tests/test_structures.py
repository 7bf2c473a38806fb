"""Dicts, sequences and single entries are keyed by task."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest

from keras_uncertainty_mtl._structures import by_task, naming_task

TASKS = ["depth", "classes"]


@pytest.mark.parametrize(
    "structure",
    [
        {"depth": 1, "classes": 2},
        {"classes": 2, "depth": 1},
        OrderedDict(classes=2, depth=1),
        [1, 2],
        (1, 2),
        namedtuple("Outputs", "first second")(1, 2),
    ],
    ids=lambda structure: type(structure).__name__,
)
def test_entries_are_in_task_order(structure):
    assert list(by_task(TASKS, structure, "targets").items()) == [("depth", 1), ("classes", 2)]


def test_the_entry_of_the_only_task_needs_no_structure():
    entry = np.ones(3)
    for structure in (entry, [entry], {"depth": entry}):
        assert by_task(["depth"], structure, "targets")["depth"] is entry


def test_entries_may_be_none_where_they_are_optional():
    entries = {"depth": None, "classes": 2}
    assert by_task(TASKS, entries, "sample_weight", optional=True) == entries
    with pytest.raises(ValueError, match="'depth': `targets` must have an entry"):
        by_task(TASKS, entries, "targets")


@pytest.mark.parametrize(
    ("structure", "received"),
    [
        ({"depth": 1}, r"Received: .*\['depth'\].*without \['classes'\]"),
        ({}, r"Received: .*\[\].*without \['depth', 'classes'\]"),
        ({"depth": 1, "classes": 2, "pose": 3}, r"Received: .*unknown \['pose'\]"),
        ({"depth": 1, "class": 2}, r"without \['classes'\].*unknown \['class'\]"),
        ([1], "Received: 1"),
        ((1, 2, 3), "Received: 3"),
        (None, "Received: None"),
        (1, "Received: one int"),
    ],
)
def test_entries_that_do_not_fit_are_refused(structure, received):
    with pytest.raises(ValueError, match=rf"`targets`.*\['depth', 'classes'\].*{received}"):
        by_task(TASKS, structure, "targets")


def test_the_only_task_needs_an_entry():
    with pytest.raises(ValueError, match=r"`targets`.*\['depth'\].*Received: None"):
        by_task(["depth"], None, "targets")


def test_value_errors_name_the_task():
    with (
        pytest.raises(ValueError, match=r"^Task 'depth': too deep$") as caught,
        naming_task("depth"),
    ):
        raise ValueError("too deep")
    assert str(caught.value.__cause__) == "too deep"


def test_other_errors_stay_as_they_are():
    with pytest.raises(TypeError, match=r"^too deep$"), naming_task("depth"):
        raise TypeError("too deep")
