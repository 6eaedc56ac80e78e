"""The fixture for tests of wrong input."""

import pytest
from calling import call

from breviary.backbones.pretrained import Backbone
from breviary.backbones.tiny import TinyBackbone


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """refused(entry, *words) -> the error messages of a call that ends before any weight is loaded."""

    def fail(*args, **kwargs):
        raise AssertionError("weights were loaded")

    def refuse(entry, *words):
        with monkeypatch.context() as patch:
            patch.setattr(Backbone, "load", fail)
            patch.setattr(TinyBackbone, "load", fail)
            code = call(patch, tmp_path, entry, *words)
        printed = capsys.readouterr()
        assert (code, printed.out) == (2, ""), printed.err
        assert printed.err.startswith("error: ") and printed.err.endswith("\n")
        assert not (tmp_path / "outputs").exists()
        return printed.err.removeprefix("error: ").removesuffix("\n").split("\nerror: ")

    return refuse
