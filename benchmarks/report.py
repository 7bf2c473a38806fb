"""Tables of the comparison: Δm, ranks, paired differences and the metrics of every problem.

Δm is the mean over tasks of the relative gain in a test metric over a network of that task alone.
A seed of a problem counts once its networks of one task and the headline methods are finished, and
a problem once three seeds do. A method counts where it has these seeds.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from benchmarks.candidates import DEFAULT, HEADLINE, METHODS, SEARCHES, SHOWN, SINGLE, methods_for
from benchmarks.problems import PROBLEMS
from examples.command_line import markdown

RESAMPLES, FEWEST_SEEDS = 10_000, 3
PAIRED = [*list(METHODS)[1:HEADLINE], next(iter(SEARCHES))]
RUN = ["problem", "method", "seed"]


def relative_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the gain of every task over its own network, in percent, and its test metric."""
    is_single = rows["method"].str.startswith(SINGLE)
    keys = ["problem", "seed", "task"]
    single = rows[is_single].set_index(keys)[["validation", "test"]].add_suffix("_single")
    rows = rows[~is_single].join(single, on=keys, how="inner")
    rows["is_score"] = [
        PROBLEMS[problem]().is_score(task)
        for problem, task in zip(rows["problem"], rows["task"], strict=True)
    ]
    rows["metric"] = rows["test"]
    for part in ("validation", "test"):
        gain = rows[part] / rows[f"{part}_single"] - 1
        rows[part] = 100 * np.where(rows["is_score"], gain, -gain)
    return rows


def with_searches(gains: pd.DataFrame) -> pd.DataFrame:
    """Adds the searches: the member with the best mean Δm on validation data, of each problem."""
    added = [gains]
    for _, of_problem in gains.groupby("problem"):
        for search, members in SEARCHES.items():
            of_members = of_problem[of_problem["method"].isin(members)]
            runs = of_members[["method", "seed"]].drop_duplicates()
            if len(runs) == len(members) * of_problem["seed"].nunique():
                best = of_members.groupby("method")["validation"].mean().idxmax()
                chosen = of_members[of_members["method"] == best]
                added.append(chosen.assign(method=search))
    return pd.concat(added)


def counted(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of the problems and seeds that count, in the order of the problems."""
    parts = [rows.iloc[:0]]
    for name, make in PROBLEMS.items():
        needed = [method for method in methods_for(make()) if method.startswith(SINGLE)]
        needed += list(METHODS)[:HEADLINE]
        of_problem = rows[rows["problem"] == name]
        seeds = [
            seed
            for seed, of_seed in of_problem.groupby("seed")
            if set(needed) <= set(of_seed["method"])
        ]
        if len(seeds) >= FEWEST_SEEDS:
            parts.append(of_problem[of_problem["seed"].isin(seeds)])
    return pd.concat(parts)


def table_of(gains: pd.DataFrame) -> pd.DataFrame:
    """Returns Δm of the test: a row for each problem and seed, a column for each method.

    A method that lacks a seed of a problem is NaN there.
    """
    means = gains.groupby(RUN)["test"].mean().unstack("method")
    means = means.reindex(columns=[method for method in SHOWN if method in means])
    is_whole = means.notna().groupby("problem").transform("all")
    return means.where(is_whole)


def paired_interval(differences: pd.Series) -> tuple[float, float, float]:
    """Returns the mean over problems of the means over seeds, and its 95% bootstrap interval.

    Problems are drawn with replacement, and then the seeds of each.
    """
    problems = [values.to_numpy() for _, values in differences.groupby("problem")]
    random = np.random.default_rng(0)
    slots = (RESAMPLES, len(problems))
    means = np.stack(
        [
            values[random.integers(len(values), size=(*slots, len(values)))].mean(axis=-1)
            for values in problems
        ]
    )
    drawn = random.integers(len(problems), size=slots)
    resampled = np.take_along_axis(means, drawn[np.newaxis], axis=0)[0].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(np.mean([values.mean() for values in problems])), float(low), float(high)


def interval_text(differences: pd.Series) -> str:
    mean, low, high = paired_interval(differences)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def mean_text(values: Iterable[float]) -> str:
    values = np.asarray(list(values), float)
    return (
        f"{values.mean():+.1f} ± {values.std(ddof=1):.1f}" if np.all(np.isfinite(values)) else "–"
    )


def by_problem(values: pd.Series) -> float:
    """Returns the mean over problems of the means over seeds."""
    return float(values.groupby("problem").mean().mean())


def summary(gains: pd.DataFrame, problems: list[str]) -> tuple[str, list[str]]:
    """Returns Δm and ranks of all methods, and the methods in order."""
    changes = table_of(gains)
    whole = changes.dropna(axis=1)
    ranks = whole.rank(axis=1, ascending=False)
    order = sorted(
        changes, key=lambda method: -np.nan_to_num(by_problem(changes[method]), nan=-1e9)
    )
    order = [m for m in order if m in whole] + [m for m in order if m not in whole]
    lines = []
    for method in order:
        cells = [mean_text(changes.loc[problem, method]) for problem in problems]
        mean, rank = "–", "–"
        if method in whole:
            mean, rank = f"{by_problem(whole[method]):+.2f}", f"{by_problem(ranks[method]):.1f}"
        lines.append([method, mean, rank, *cells])
    header = ["Δm, %", "mean", f"mean rank of {whole.shape[1]}", *problems]
    return markdown(header, lines), order


def rivals(gains: pd.DataFrame, order: list[str]) -> str:
    """Returns the paired difference to each rival, over all tasks and over those of classes."""
    whole = table_of(gains).dropna(axis=1)
    ranks = whole.rank(axis=1, ascending=False)
    classes = table_of(gains[gains["is_score"]]).dropna(axis=1)
    lines = []
    for method in (each for each in order if each in whole):
        cells = ["", "", f"{by_problem(classes[method]):+.2f}", ""]
        if method != DEFAULT:
            cells = [
                interval_text(whole[DEFAULT] - whole[method]),
                interval_text(ranks[method] - ranks[DEFAULT]),
                cells[2],
                interval_text(classes[DEFAULT] - classes[method]),
            ]
        lines.append([method, *cells])
    header = ["", f"{DEFAULT} − rival, Δm", "ranks before rival", "class tasks, Δm"]
    return markdown([*header, f"{DEFAULT} − rival, class tasks"], lines)


def differences_by_problem(gains: pd.DataFrame, problems: list[str]) -> str:
    """Returns the paired differences to the main rivals, problem by problem."""
    changes = table_of(gains)
    lines = [
        [
            method,
            *(
                mean_text(changes.loc[problem, DEFAULT] - changes.loc[problem, method])
                for problem in problems
            ),
        ]
        for method in PAIRED
        if method in changes
    ]
    return markdown([f"{DEFAULT} minus", *problems], lines)


def harm_of_noise(gains: pd.DataFrame) -> str:
    """Returns by how much tasks of pure noise change the tasks beside them."""
    changes = table_of(gains)
    lines = []
    for method in list(METHODS)[:HEADLINE]:
        change = (changes.loc["noise", method] - changes.loc["flights", method]).dropna()
        lines.append([method, mean_text(change)])
    return markdown(["Δm with three tasks of noise, minus without", "flights"], lines)


def metrics_of(rows: pd.DataFrame, gains: pd.DataFrame, problem: str, order: list[str]) -> str:
    """Returns the metrics of a problem, with the mean rank of each method among its seeds."""
    tasks = list(PROBLEMS[problem]().metrics())
    changes = table_of(gains).loc[problem].dropna(axis=1)
    ranks = changes.rank(axis=1, ascending=False).mean()
    rows, gains = (each[each["problem"] == problem] for each in (rows, gains))
    single = rows[rows["method"].str.startswith(SINGLE)]
    lines = [["a network a task", "", *metric_texts(single, "test", tasks)]]
    for method in (each for each in order if each in changes):
        values = metric_texts(gains[gains["method"] == method], "metric", tasks)
        lines.append([method, f"{ranks[method]:.1f}", *values])
    return f"### {problem}\n\n" + markdown(["", "rank", *tasks], lines)


def metric_texts(rows: pd.DataFrame, column: str, tasks: list[str]) -> list[str]:
    values = rows.groupby("task")[column]
    return [f"{values.mean()[task]:.4g} ± {values.std()[task]:.2g}" for task in tasks]


def status(rows: pd.DataFrame, counts: pd.DataFrame) -> str:
    """Returns what is finished, and where and with what it ran."""
    total = sum(len(methods_for(make())) * make().seeds for make in PROBLEMS.values())
    seeds = counts.groupby("problem")["seed"].nunique()
    finished = [f"{problem} {seeds[problem]}" for problem in PROBLEMS if problem in seeds]
    waiting = [problem for problem in PROBLEMS if problem not in seeds]
    run_on = [", ".join(rows[name].unique()) for name in ("versions", "machine", "commit")]
    lines = [
        f"{len(rows[RUN].drop_duplicates())} of {total} runs are finished. "
        f"Seeds that count: {', '.join(finished) or 'none'}.",
        f"Not finished, and left out: {', '.join(waiting) or 'none'}. A dash: runs are missing.",
        f"{run_on[0]}; {run_on[1]}; commits {run_on[2]}. "
        f"A run takes {rows.groupby(RUN)['seconds'].first().median():.0f} s (median).",
    ]
    return "\n".join(lines) + "\n"


def report(rows: pd.DataFrame) -> str:
    """Returns all tables as Markdown."""
    counts = counted(rows)
    tables = [status(rows, counts)]
    problems = list(counts["problem"].unique())
    if problems:
        gains = with_searches(relative_gains(counts))
        table, order = summary(gains, problems)
        tables += [table, rivals(gains, order), differences_by_problem(gains, problems)]
        if {"noise", "flights"} <= set(problems):
            tables.append(harm_of_noise(gains))
        tables += [metrics_of(counts, gains, problem, order) for problem in problems]
    return "\n".join(tables)
