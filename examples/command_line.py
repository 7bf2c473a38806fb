"""What the examples read from the command line, and how they print their tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def format_table(rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Rows in columns of one width each, the first of them to the left and numbers to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
