"""Reproducible worker processes of the benchmarks."""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.pool import Pool

import tensorflow as tf

RUNS_OF_A_PROCESS = 20


def one_thread_pool(workers: int) -> Pool:
    """Processes of one thread each, so the order of sums never changes."""
    # TensorFlow keeps about 50 MB of every trained model until its process ends.
    return get_context("spawn").Pool(workers, _use_one_thread, maxtasksperchild=RUNS_OF_A_PROCESS)


def _use_one_thread() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
