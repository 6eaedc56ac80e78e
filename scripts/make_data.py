"""Generates the data sets that need no download, and states which public ones are ready.

    python scripts/make_data.py
    make data                                       # the same
    BREVIARY_DATA=my_data python scripts/make_data.py   # in another folder

Prepared data sets lie in BREVIARY_DATA, else in data/ of BREVIARY_CACHE, else in ~/.cache/breviary/data. For each
public data set one line is printed: its splits, or where to download it and the command that prepares it
(docs/data.md). invented_facts and passkey are generated while a run starts and need no files.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

import argparse
from collections.abc import Sequence

from breviary.config.errors import cli_errors
from breviary.runtime.spelling import command, next_line
from data.converters.prepare import data_folder
from data.public.generated import generate, state_lines


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 where the folder cannot be written."""
    build_parser().parse_args(arguments)
    with cli_errors():
        home = data_folder()
        for line in [*generate(home), f"data sets in {home}:", *state_lines(home)]:
            print(line)
    print(next_line(command("train.py", "experiment=comi_facts")))


if __name__ == "__main__":
    main()
