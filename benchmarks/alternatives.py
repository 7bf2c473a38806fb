"""Alternatives to the package's default: chosen on validation data, judged on other problems.

    nice python -m benchmarks.alternatives --workers 1

Every second problem of the comparison chooses: the alternative with the best mean Δm on validation
data. The other problems judge it, by Δm on test data. It would become the default if it beat it by
more than the paired 95% interval. Runs are those of `benchmarks.comparison`, whose finished runs of
single tasks and of the default are read. Finished runs are not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.candidates import ALTERNATIVES, APPROXIMATE, DEFAULT
from benchmarks.comparison import run_all
from benchmarks.problems import PROBLEMS
from benchmarks.report import (
    RUN,
    by_problem,
    interval_text,
    mean_text,
    relative_gains,
)
from examples.command_line import markdown

SEEDS = range(3)
TABLES = [name for name in PROBLEMS if name != "scenes"]
CHOOSING, JUDGING = TABLES[::2], TABLES[1::2]
RESULTS = Path(__file__).parent / "results"


def table(rows: pd.DataFrame, problems: list[str], part: str) -> tuple[str, str]:
    """Returns Δm of all finished methods as Markdown, and the best of the alternatives."""
    gains = relative_gains(rows[rows["problem"].isin(problems) & rows["seed"].isin(SEEDS)])
    every = gains.groupby(RUN)[part].mean().unstack("method").dropna(axis=1)
    classes = gains[gains["is_score"]].groupby(RUN)[part].mean().unstack("method")
    shown = [name for name in (DEFAULT, APPROXIMATE, *ALTERNATIVES) if name in every]
    shown.sort(key=lambda name: -by_problem(every[name]))
    lines = []
    for name in shown:
        means = [mean_text(every.loc[problem, name]) for problem in problems]
        difference = "" if name == DEFAULT else interval_text(every[name] - every[DEFAULT])
        cells = f"{by_problem(every[name]):+.2f}", difference, f"{by_problem(classes[name]):+.2f}"
        lines.append([name, *cells, *means])
    header = [f"Δm, %, {part}", "mean", f"minus {DEFAULT}", "class tasks", *problems]
    best = next((name for name in shown if name in ALTERNATIVES), "none")
    return markdown(header, lines), best


def main() -> None:
    """Runs the missing runs; prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    file = arguments.results / "alternatives.csv"

    def rows() -> pd.DataFrame:
        files = [RESULTS / "comparison.csv", *([file] if file.exists() else [])]
        return pd.concat([pd.read_csv(each) for each in files])

    def run(problems: list[str], names: list[str]) -> None:
        finished = set(rows()[RUN].itertuples(index=False))
        wanted = [(name, each, seed) for name in problems for each in names for seed in SEEDS]
        if not arguments.report:
            run_all([key for key in wanted if key not in finished], file, arguments.workers)

    run(CHOOSING, list(ALTERNATIVES))
    chosen, best = table(rows(), CHOOSING, "validation")
    run(JUDGING, [best])
    judged, _ = table(rows(), JUDGING, "test")
    text = f"Validation data of half of the problems choose “{best}”.\n\n{chosen}\n{judged}"
    (arguments.results / "alternatives.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
