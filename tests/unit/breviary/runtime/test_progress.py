"""Progress of long loops: one line that is replaced on a terminal, few lines in a file."""

import sys

from breviary.runtime import distributed
from breviary.runtime.distributed import print_progress


def test_progress_in_a_file_and_on_a_terminal(monkeypatch, capsys):
    now = distributed._last_progress
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now)
    monkeypatch.setattr(distributed, "_last_progress", now)
    for count in range(3):
        print_progress(f"{count}/3")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now + 61)
    print_progress("1/3")
    print_progress("2/3")
    assert capsys.readouterr().out == "1/3\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_progress("2/3")
    print_progress("3/3")
    assert capsys.readouterr().out == "2/3\r3/3\r"
    monkeypatch.setenv("RANK", "1")
    print_progress("3/3")
    assert capsys.readouterr().out == ""
