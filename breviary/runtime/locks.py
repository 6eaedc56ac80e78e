"""Locks between processes: flock on a file, which the operating system releases when the process ends, however it ends.

A file names the process that has the lock; a file that a killed process has left is no obstacle. On network file
systems flock works between machines where the server keeps locks (NFS with lockd, Lustre mounted with flock, most
others); some keep them on each machine only. A file system without locks is named in a line, and nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

LOCK = ".lock"  # in the folder that one process writes
WAIT = 0.5  # seconds: a killed process may still be ending, and the one that has the lock may not have named itself
POLL = 0.02

UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_held: dict[Path, int] = {}  # file: its open descriptor, which has the lock
_unsupported: set[Path] = set()  # folders of which a warning was printed


class LockedError(ValueError):
    """Another process has the lock."""


def take_lock(file: Path, what: str, advice: str, wait: float | None = None) -> bool:
    """Takes the lock on `file` until `release_lock` or the end of the process; False where this process has it already.

    what    what is locked, for the message
    advice  what to do meanwhile, end of the message
    wait    seconds for which the lock of another process is waited for; None = WAIT
    A folder that cannot be written is not locked: nothing is written there.
    Raises: LockedError naming process and machine.
    """
    file = file.parent.resolve() / file.name
    if file in _held:
        return False
    end = time.monotonic() + (WAIT if wait is None else wait)
    while True:
        descriptor = _open(file)
        if descriptor is None:
            return True
        if _try_lock(descriptor, file) and _is_in_place(file, descriptor):
            _held[file] = descriptor
            _write_owner(descriptor)
            return True
        os.close(descriptor)
        if time.monotonic() >= end:
            raise LockedError(f"{what}: {_owner(file)} is writing it; {advice}")
        time.sleep(POLL)


def release_lock(file: Path) -> None:
    """Releases a lock of this process and deletes the file; nothing where there is none."""
    file = file.parent.resolve() / file.name
    descriptor = _held.pop(file, None)
    if descriptor is None:
        return
    with contextlib.suppress(FileNotFoundError):  # the folder was deleted
        file.unlink()  # before the lock is released: who waits for it opens a new file (_is_in_place)
    os.close(descriptor)


@contextlib.contextmanager
def locked(file: Path, what: str, advice: str, wait: float | None = None) -> Iterator[None]:
    """`take_lock`, and `release_lock` at the end where it was taken here."""
    is_new = take_lock(file, what, advice, wait)
    try:
        yield
    finally:
        if is_new:
            release_lock(file)


def _open(file: Path) -> int | None:
    """A descriptor of the file, which is made where there is none; None where it can neither be made nor read."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)  # another user's
    except OSError:
        return None


def _try_lock(descriptor: int, file: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in UNSUPPORTED:
            raise
        if file.parent not in _unsupported:
            _unsupported.add(file.parent)
            print(
                f"warning: {file.parent}: this file system has no locks ({os.strerror(error.errno)}); nothing keeps a "
                "second process from writing there: start one only",
                flush=True,
            )
    return True


def _is_in_place(file: Path, descriptor: int) -> bool:
    """Whether the locked file is still the one of that name: its former owner may have deleted it."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):  # a full disk, another user's file: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _owner(file: Path) -> str:
    """The process that the file names, in words."""
    try:
        owner = json.loads(file.read_bytes())
        return f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _forget() -> None:
    """In a forked process, such as one of a data loader, which must not keep the lock of a parent that was killed."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
