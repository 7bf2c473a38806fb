"""Comparison of task weightings on rendered streets: headline, Table 1, Figure 2, starts of σ.

    python -m examples.scenes.compare

Every finished run is a row of runs.csv. An interrupted comparison resumes after the last row.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import joblib

from examples.command_line import positive
from examples.scenes.methods import RUNS, TASKS, Run
from examples.scenes.report import write_report
from examples.scenes.rows import Row, read_rows, write_rows
from examples.scenes.runs import Settings, carry_out, prepare


def main() -> None:
    options = parse_arguments()
    settings = Settings(options.dataset, options.data_dir, options.epochs)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "runs.csv"
    rows = read_rows(path)
    check_settings(rows, settings, path)
    if not options.report:
        carry_out_the_rest(rows, settings, options.jobs, path)
    if missing := unfinished(rows):
        sys.exit(
            f"{len(missing)} of {len(RUNS)} runs are missing from {path}. "
            "Finish them without --report."
        )
    write_report(rows, options.output_dir)
    print(f"The tables and the figures are in {options.output_dir}.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", default="streets/32x64", help="as of examples.scenes.train (%(default)s)")
    add("--data-dir", help="data directory of TensorFlow Datasets")
    add(
        "--epochs",
        type=positive,
        default=40,
        help="training epochs of each network (%(default)s)",
    )
    add(
        "--jobs",
        type=positive,
        default=joblib.cpu_count(),
        help="number of parallel runs, each on one core (%(default)s)",
    )
    add(
        "--output-dir",
        type=Path,
        default=Path(__file__).with_name("results"),
        help="directory of the runs, the table and the figures (%(default)s)",
    )
    add("--report", action="store_true", help="only redraw the table and the figures from runs.csv")
    return parser.parse_args()


def carry_out_the_rest(rows: list[Row], settings: Settings, jobs: int, path: Path) -> None:
    """Carries out the pending runs, and adds their rows to `rows` and to the file."""
    pending = unfinished(rows)
    print(f"{len(rows)} of {len(RUNS)} runs are finished; {jobs} run at a time.", flush=True)
    if not pending:
        return
    prepare(settings)
    start = time.perf_counter()
    # Unordered single runs, so that each row is saved as soon as it is finished. TensorFlow leaks
    # memory in each run; joblib replaces a process that has grown too large.
    parallel = joblib.Parallel(
        jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=jobs
    )
    for row in parallel(joblib.delayed(carry_out)(run, settings) for run in pending):
        rows.append(row)
        write_rows(rows, path)
        left = len(RUNS) - len(rows)
        hours = (time.perf_counter() - start) / (len(pending) - left) * left / 3600
        values = ", ".join(f"{task} {row[f'test_{task}'] or '-'}" for task in TASKS)
        print(
            f"{len(rows)}/{len(RUNS)}  {row['method']}, seed {row['seed']}: {values}  "
            f"({float(row['seconds']):.0f} s, {hours:.1f} h left)",
            flush=True,
        )


def unfinished(rows: Sequence[Row]) -> list[Run]:
    finished = {(row["method"], row["seed"]) for row in rows}
    return [run for run in RUNS if (run.method.name, str(run.seed)) not in finished]


def check_settings(rows: Sequence[Row], settings: Settings, path: Path) -> None:
    for row in rows:
        if (row["dataset"], row["epochs"]) != (settings.dataset, str(settings.epochs)):
            sys.exit(
                f"{path} holds runs with --dataset {row['dataset']} --epochs {row['epochs']}. "
                f"Received: --dataset {settings.dataset} --epochs {settings.epochs}. "
                "Use the same settings or another --output-dir."
            )


if __name__ == "__main__":
    main()
