"""Runs a study's script as from the command line, on small overrides."""

import sys
from types import ModuleType

import pytest

from breviary.config.errors import run_cli


def call_study(script: ModuleType, folder, *overrides: str) -> int:
    """Runs the script's main and returns the exit code. Its cache and its output `out` are in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [f"paths.cache={folder}/cache", f"output={folder}/out"]
        patch.setattr(sys, "argv", [script.__file__, *overrides, *paths])
        try:
            run_cli(script.main, script.CONFIG)
        except SystemExit as ended:
            return ended.code
    return 0
