"""Predictions, targets and weights of several tasks, in whatever structure the user keeps them."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import keras


def by_task(
    tasks: Iterable[str],
    structure: Any,
    argument: str,
    optional: bool = False,
    outputs: Any = None,
) -> dict[str, Any]:
    """The entries of a structure, keyed by task, in task order.

    The structure is a dict keyed by task, a list or tuple in task order, or, where there is one
    task, the entry itself. Only optional entries may be `None`. Next to `outputs` in a dict, which
    Keras sorts by name, a list or tuple is refused unless this is the task order.
    """
    tasks = list(tasks)
    if not tasks and not structure:
        return {}
    expected = f"`{argument}` must have one entry for each of the tasks {tasks}"
    if isinstance(structure, (list, tuple)):
        if len(structure) != len(tasks):
            raise ValueError(
                f"{expected}, in this order: {len(tasks)}. Received: {len(structure)}. Use a dict "
                "keyed by task to be sure which is which."
            )
        if isinstance(outputs, dict) and tasks != sorted(tasks):
            raise ValueError(
                f"`{argument}` must be a dict keyed by task, because the outputs are one, and its "
                f"order can be read in two ways: {tasks}, as the tasks are given, or "
                f"{sorted(tasks)}, as Keras sorts the outputs. Received: a "
                f"{type(structure).__name__}. Use a dict, or give the outputs in a list as well."
            )
        structure = dict(zip(tasks, structure, strict=True))
    elif not isinstance(structure, dict):
        if structure is None or len(tasks) > 1:
            raise ValueError(
                f"{expected}, in a dict keyed by task, or a list or tuple in task order. "
                f"Received: {structure!r}"
            )
        structure = {tasks[0]: structure}
    missing = [task for task in tasks if task not in structure]
    unknown = [key for key in structure if key not in tasks]
    if missing or unknown:
        raise ValueError(
            f"{expected}. Received: the keys {list(structure)}, without {missing}, with the "
            f"unknown {unknown}. Give the dict the names of the tasks as its keys."
        )
    for task in tasks:
        _check_entry(task, structure[task], argument, optional)
    return {task: structure[task] for task in tasks}


def _check_entry(task: str, entry: Any, argument: str, optional: bool) -> None:
    """Refuses an entry that is no tensor."""
    if entry is None and not optional:
        raise ValueError(f"Task '{task}': `{argument}` must have an entry. Received: None")
    # Only metrics, which are optional, come in lists.
    if isinstance(entry, (dict, list, tuple)) and not optional:
        parts = list(entry) if isinstance(entry, dict) else len(entry)
        raise ValueError(
            f"Task '{task}': `{argument}` must have one tensor. Received: a "
            f"{type(entry).__name__} of {parts}. Make each of its parts a task, in a dict that is "
            "not nested."
        )


def in_structure_of(structure: Any, entries: dict[str, Any]) -> Any:
    """Entries keyed by task, in the structure that `by_task` has taken them from."""
    if isinstance(structure, dict):
        return {task: entries[task] for task in structure}
    return keras.tree.pack_sequence_as(structure, list(entries.values()))


def validate_loss_weights(loss_weights: Any, tasks: list[str]) -> dict[str, float]:
    """The loss weight of each task, 1 where none is given."""
    if not isinstance(loss_weights, Mapping | None):
        raise ValueError(f"`loss_weights` must be a dict from tasks. Received: {loss_weights!r}")
    weights = dict.fromkeys(tasks, 1.0) | dict(loss_weights or {})
    for task, weight in weights.items():
        if task not in tasks:
            raise ValueError(f"`loss_weights` names the unknown task {task!r}. Tasks: {tasks}.")
        if not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
            raise ValueError(
                f"Task '{task}': its entry in `loss_weights` must be a finite number that is not "
                f"negative. Received: {weight!r}"
            )
    return {task: float(weight) for task, weight in weights.items()}


@contextmanager
def naming_task(task: str) -> Iterator[None]:
    """Puts the name of the task in front of any `ValueError` from inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Task '{task}': {error}") from error
