"""Predictions, targets and weights of several tasks, in whatever structure the user keeps them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def by_task(
    tasks: Sequence[str], structure: Any, argument: str, optional: bool = False
) -> dict[str, Any]:
    """The entries of a structure, keyed by task, in task order.

    The structure is a dict keyed by task, a list or tuple in task order, or, where there is one
    task, the entry itself. Only optional entries may be `None`.
    """
    entries = _entries(tasks, structure, argument)
    for task, entry in entries.items():
        if entry is None and not optional:
            raise ValueError(f"Task '{task}': `{argument}` must have an entry. Received: None")
    return entries


def in_structure_of(structure: Any, entries: dict[str, Any]) -> Any:
    """Entries keyed by task, in the structure that `by_task` has taken them from."""
    if isinstance(structure, dict):
        return {task: entries[task] for task in structure}
    if isinstance(structure, (list, tuple)):
        return type(structure)(entries.values())
    (entry,) = entries.values()
    return entry


def _entries(tasks: Sequence[str], structure: Any, argument: str) -> dict[str, Any]:
    if isinstance(structure, dict):
        missing = [task for task in tasks if task not in structure]
        unknown = [key for key in structure if key not in tasks]
        if missing or unknown:
            raise ValueError(
                f"`{argument}` must have one entry for each of the tasks {list(tasks)}. Received: "
                f"the keys {list(structure)}, without {missing}, with the unknown {unknown}. Give "
                "the dict the names of the tasks as its keys."
            )
        return {task: structure[task] for task in tasks}
    if isinstance(structure, (list, tuple)):
        if len(structure) != len(tasks):
            raise ValueError(
                f"`{argument}` must have one entry for each of the tasks {list(tasks)}, in this "
                f"order: {len(tasks)}. Received: {len(structure)}. Use a dict keyed by task to be "
                "sure which is which."
            )
        return dict(zip(tasks, structure, strict=True))
    if structure is not None and len(tasks) == 1:
        return {tasks[0]: structure}
    raise ValueError(
        f"`{argument}` must be a dict keyed by task, or a list or tuple in task order, for the "
        f"tasks {list(tasks)}. Received: {structure!r}"
    )


@contextmanager
def naming_task(task: str) -> Iterator[None]:
    """Puts the name of the task in front of any `ValueError` from inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Task '{task}': {error}") from error
