"""Calls one function in several processes at the same moment."""

from __future__ import annotations

import json
import os


def ask_at_once(function, processes=8):
    """Calls `function` in forked processes that wait for each other; their answers (kind, text), while all are alive.

    A process ends when the caller has all answers.
    """
    go, answers, end = os.pipe(), os.pipe(), os.pipe()
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if not pid:
            os.read(go[0], 1)
            try:
                answer = ["opened", os.getpid(), str(function())]
            except Exception as error:
                answer = [type(error).__name__, os.getpid(), str(error)]
            os.write(answers[1], (json.dumps(answer) + "\n").encode())
            os.read(end[0], 1)
            os._exit(0)
        pids.append(pid)
    os.write(go[1], b"." * processes)
    with os.fdopen(answers[0]) as stream:
        found = [json.loads(stream.readline()) for _ in range(processes)]
    os.write(end[1], b"." * processes)
    for pid in pids:
        os.waitpid(pid, 0)
    return found
