"""A study's script called as from the command line, with little to do."""

import sys
from types import ModuleType

import pytest

from breviary.config.errors import run_cli


def called(study: ModuleType, folder, *words: str) -> int:
    """Runs the study's main with `words`; gives the exit code. Its cache and its output `out` lie in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [study.__file__, *words, f"paths.cache={folder}/cache", f"output={folder}/out"])
        try:
            run_cli(study.main, study.config_keys)
        except SystemExit as ended:
            return ended.code
    return 0
