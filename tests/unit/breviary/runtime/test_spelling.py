"""How commands are written, for results and messages."""

import shlex

from breviary.runtime.checkout import ROOT
from breviary.runtime.spelling import own_command


def test_the_own_command_is_one_line_for_a_shell(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    words = ["compressor=comi", "run=outputs/a b", "prompt.instruction='it''s <b>'"]
    monkeypatch.setattr("sys.argv", [str(ROOT / "scripts/reading_map.py"), *words])
    assert shlex.split(own_command()) == ["python", "scripts/reading_map.py", *words]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(own_command())[1] == str(ROOT / "scripts/reading_map.py")
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/other", "x"])
    assert shlex.split(own_command())[1:] == ["/somewhere/bin/other", "x"]
