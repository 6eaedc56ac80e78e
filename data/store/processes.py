"""One function over many tasks, in several processes of this machine; results in the order of the tasks."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST = 8  # processes; each needs about 50 MB of its own

_function: Callable[[Any], Any]  # of a worker process


def process_count(tasks: int) -> int:
    """Processes for so many tasks: as many as CPUs that this process may use (`taskset` limits them), MOST at most."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(tasks, cpus, MOST) if "fork" in multiprocessing.get_all_start_methods() else 1


def in_processes(function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    """Yields `function(task)` in order. Workers are forked and share the memory of objects that the function refers to.

    Raises: the exception of the first task that fails; ValueError where a worker is killed.
    """
    count = process_count(len(tasks))
    if count < 2:
        yield from map(function, tasks)
        return
    gc.freeze()  # a garbage collection writes to every object and would copy the shared pages
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _begin, (function,))
    try:
        futures = [pool.submit(_call, task) for task in tasks]
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"one of {count} processes that prepare the data was killed, most likely for want of memory; give the same "
            "command again with fewer of them: taskset --cpu-list 0-1 COMMAND"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process of a terminal: end without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(task: Any) -> Any:
    return _function(task)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)  # otherwise it waits for tasks forever and keeps the folder locked
