"""A lock keeps other processes out, names the one that has it, and ends with it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import threading

import pytest

from breviary.runtime import locks
from breviary.runtime.locks import LockedError, locked, release_lock, take_lock


@pytest.fixture
def file(tmp_path):
    file = tmp_path / ".lock"
    yield file
    release_lock(file)


def child(function):
    """A forked process that calls `function`, answers with one line, and waits; (pid, line)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, (repr(function()) + "\n").encode())
        except LockedError as error:
            os.write(writer, (str(error) + "\n").encode())
        threading.Event().wait(20)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        return pid, stream.readline().strip()


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def take(file, wait=0.05):
    return take_lock(file, "run R", "wait", wait)


def test_another_process_is_refused_and_named_until_it_is_killed(file):
    pid, taken = child(lambda: take(file))
    assert taken == "True"
    with pytest.raises(
        LockedError, match=rf"^run R: process {pid} on {socket.gethostname()} \(since .*\) is writing it"
    ):
        take(file)
    kill(pid)
    assert file.exists() and take(file)  # what a killed process leaves is no obstacle
    assert json.loads(file.read_text())["pid"] == os.getpid()


def test_a_process_has_its_lock_once_and_deletes_the_file(file):
    assert take(file) and not take(file)
    with locked(file, "run R", "wait"):
        pass
    assert file.exists()  # taken outside
    release_lock(file)
    assert not file.exists()
    with locked(file, "run R", "wait"):
        assert file.exists()
    assert not file.exists()


def test_a_forked_process_does_not_keep_the_lock_of_its_parent(file):
    """As a worker of a data loader, which outlives a killed parent by seconds."""
    assert take(file)
    pid, _ = child(lambda: None)
    descriptor = locks._held.pop(locks.Path(os.path.realpath(file)))
    os.close(descriptor)  # as the end of this process would
    try:
        assert take(file, wait=0)
    finally:
        kill(pid)


def test_a_lock_on_a_deleted_file_is_none(file, monkeypatch):
    """The owner deletes the file between opening and locking; a third process may have made a new one."""
    real, calls = fcntl.flock, []

    def flock(descriptor, kind):
        calls.append(kind)
        if len(calls) == 1:
            file.unlink()
        return real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert take(file) and len(calls) == 2 and file.exists()


def test_a_file_system_without_locks_is_said_once(file, monkeypatch, capsys):
    def flock(descriptor, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        assert take(file)
        release_lock(file)
    assert capsys.readouterr().out.count("this file system has no locks") == 1


def test_what_cannot_be_written_is_not_locked(file, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    assert take(file) and not file.exists()
