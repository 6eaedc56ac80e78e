"""Prints a published table beside our results, and the command that reproduces each cell.

    python scripts/table.py comi_main [--commands] [--run ROW/DATASET=RUN ...]

The table is configs/table/NAME.yaml or any file of the same form; comi_main.yaml documents the form. Our results come
from the run folders that the file or --run names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.report.published import add_runs, load_published_table, print_published_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", help="name in configs/table, or a YAML file")
    parser.add_argument("--commands", action="store_true", help="print the command of every cell")
    parser.add_argument("--run", action="append", default=[], metavar="ROW/DATASET=RUN", help="run folder of one cell")
    args = parser.parse_args(arguments)
    with cli_errors():
        table = load_published_table(args.table)
        add_runs(table, args.run)
        print_published_table(table, args.commands)


if __name__ == "__main__":
    main()
