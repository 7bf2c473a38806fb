"""Predictions, targets and weights of several tasks, in whatever structure the user keeps them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras


def by_task(
    tasks: Iterable[str], structure: Any, argument: str, optional: bool = False, outputs: Any = None
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
                f"{expected}, in this order. Received: {len(structure)} entries. Use a dict keyed "
                "by task to be sure which is which."
            )
        _check_order(tasks, structure, argument, outputs)
        structure = dict(zip(tasks, structure, strict=True))
    elif not isinstance(structure, dict):
        if structure is None or len(tasks) > 1:
            advice = ". Take a table apart: {task: table[task] for task in …}"
            received = f"one {type(structure).__name__}{advice}" if structure is not None else None
            raise ValueError(
                f"{expected}, in a dict keyed by task, or a list or tuple in task order. "
                f"Received: {received}"
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


def _check_order(tasks: list[str], structure: Any, argument: str, outputs: Any) -> None:
    """Refuses a sequence next to a dict that Keras sorts into another order."""
    if isinstance(outputs, dict) and tasks != sorted(tasks):
        raise ValueError(
            f"`{argument}` must be a dict keyed by task, because the outputs are one. Its order "
            f"can be read in two ways: {tasks}, as the tasks are given, or {sorted(tasks)}, as "
            f"Keras sorts the outputs. Received: a {type(structure).__name__}. Use a dict, or give "
            "the outputs in a list as well."
        )


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


@contextmanager
def naming_task(task: str) -> Iterator[None]:
    """Puts the name of the task in front of any `ValueError` from inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Task '{task}': {error}") from error
