"""Folders that one process writes and all others open: written under a temporary name, renamed, guarded by a lock."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from breviary.runtime.distributed import print_rank0

WAIT_S = 600.0  # timeout of waiting processes, counted from the last write
HEAD_START_S = 10.0  # for the first process of a machine, whose progress is printed
_POLL_S = 0.2


def make_once(folder: Path, build: Callable[[Path], None], what: str) -> None:
    """Creates `folder` by `build(path)`, unless it exists. Waits where another process is creating it.

    build  creates its argument, a temporary path that is then renamed to `folder`. Temporary folders of killed
           processes are never used; the next process on the same machine removes them
    what   the content, for messages
    Raises: ValueError where the folder cannot be written, or where another process wrote nothing for WAIT_S seconds.
    """
    if folder.is_dir():
        return
    lock_file = folder.with_name(f"{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _let_first_process_begin(folder, lock_file)
        lock = _lock_unless_made(folder, lock_file, what)
        if lock is None:
            return
        try:
            _make(folder, build)
            lock_file.unlink(missing_ok=True)  # a process that still waits on the old file finds the folder complete
        finally:
            lock.release()
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: tokenised data cannot be written there ({error.strerror or error}); free space, or set "
            "paths.cache (or the environment variable BREVIARY_CACHE) to a folder that you may write, e.g. "
            "paths.cache=cache"
        ) from error


def _let_first_process_begin(folder: Path, lock_file: Path) -> None:
    """Waits in the other processes of a machine until its first one has the lock, for HEAD_START_S at most."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        return
    end = time.monotonic() + HEAD_START_S
    while not folder.is_dir() and not lock_file.exists() and time.monotonic() < end:
        time.sleep(_POLL_S / 4)


def _lock_unless_made(folder: Path, lock_file: Path, what: str) -> FileLock | None:
    """The lock, or None where another process has made the folder."""
    lock = FileLock(str(lock_file))
    seen, since, is_reported = _written(folder), time.monotonic(), False
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not is_reported:
                print_rank0(
                    f"waiting for another process that writes {what} into {folder}; times out when it writes nothing "
                    f"for {WAIT_S:g} s"
                )
                is_reported = True
        else:
            if not folder.is_dir():
                return lock
            lock_file.unlink(missing_ok=True)
            lock.release()
        if folder.is_dir():
            return None
        written = _written(folder)
        if written != seen:
            seen, since = written, time.monotonic()
        if time.monotonic() - since > WAIT_S:
            raise ValueError(
                f"{folder}: another process holds {lock_file.name} and has written nothing for {WAIT_S:g} s; end it, "
                "or set paths.tokenised to another folder, e.g. paths.tokenised=cache/tokenised"
            )
        time.sleep(_POLL_S)


def _written(folder: Path) -> list[tuple[str, int]]:
    """(name, bytes) of the temporary files, which change while a process is writing."""
    sizes = []
    for partial in folder.parent.glob(f"partial-{folder.name}-*"):
        for path, _, names in os.walk(partial):  # unlike Path.glob, tolerates folders that are removed meanwhile
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    sizes.append((f"{path}/{name}", os.path.getsize(f"{path}/{name}")))
    return sorted(sizes)


def _make(folder: Path, build: Callable[[Path], None]) -> None:
    host = socket.gethostname()
    for left in folder.parent.glob(f"partial-{folder.name}-{host}-*"):  # under the lock: of a killed process
        shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"partial-{folder.name}-{host}-{os.getpid()}")
    partial.mkdir()
    try:
        build(partial / "complete")
        try:
            os.rename(partial / "complete", folder)
        except OSError:
            # Where the file system has no locks, another process may be first with the same content.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
