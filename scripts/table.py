"""Prints a published table beside our results, and the command that reproduces each cell.

    python scripts/table.py comi_main
    python scripts/table.py comi_main --commands
    python scripts/table.py comi_main --run comi_16x_qwen2_7b/nq=outputs/comi_nq

The table is configs/table/NAME.yaml or any file of the same form; comi_main.yaml documents the form. Our results come
from the run folders that the file or --run names. A run whose backbone, ratio, data, prompt, number of examples or
training is not the cell's is refused. --commands prints every command with an estimate of memory and time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from breviary.config.cli.run_names import FORMS
from breviary.config.errors import cli_errors
from breviary.report.published import add_runs, load_published_table, print_published_table
from breviary.runtime.spelling import command, next_line
from data.metrics import rouge_1


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", help="name in configs/table, or a YAML file")
    parser.add_argument("--commands", action="store_true", help="print the command of every cell")
    parser.add_argument("--run", action="append", default=[], metavar="ROW/DATASET=RUN", help=f"of one cell; {FORMS}")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    args = build_parser().parse_args(arguments)
    with cli_errors():
        table = load_published_table(args.table)
        add_runs(table, args.run)
        print_published_table(table, args.commands, {"rouge_1": rouge_1})
    if not args.commands:
        print(next_line(command("scripts/table.py", args.table, "--commands")))


if __name__ == "__main__":
    main()
