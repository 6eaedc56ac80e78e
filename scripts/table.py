"""Prints a published table beside our results, or measures a table of ours; and prints the commands of its cells.

    python scripts/table.py comi_main
    python scripts/table.py comi_main --commands
    python scripts/table.py comi_main --run comi_16x_qwen2_7b/nq=outputs/comi_nq
    python scripts/table.py alternatives --part nq_qwen25_coder

The table is configs/table/NAME.yaml or any file of the same form; comi_main.yaml documents the form. Our results come
from the run folders that the file or --run names. A run whose backbone, ratio, data, prompt, number of examples or
training is not the cell's is refused. --commands prints every command with an estimate of memory and time.
A table with `parts`, such as alternatives, is evaluated here: rows that are finished are not computed again, and
JSON, CSV, Markdown and a figure of each part are written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

from omegaconf import open_dict

from breviary.config.cli.run_names import FORMS
from breviary.config.errors import cli_errors
from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.session import EvaluationSession
from breviary.report.measured import (
    evaluate_part,
    is_measured,
    load_measured_table,
    part_command,
    part_rows,
    write_part,
)
from breviary.report.published import add_runs, load_published_table, print_published_table
from breviary.runtime.spelling import command, next_line
from data.metrics import rouge_1
from data.text_pipeline import TEXT


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", help="name in configs/table, or a YAML file")
    parser.add_argument("--commands", action="store_true", help="print the command of every cell")
    parser.add_argument("--part", action="append", metavar="NAME", help="of a measured table; default: all")
    parser.add_argument("--outputs", default="outputs/tables", metavar="FOLDER", help="evaluations of a measured table")
    parser.add_argument("--output", metavar="FOLDER", help="files of a measured table; default: OUTPUTS/TABLE")
    parser.add_argument("--run", action="append", default=[], metavar="ROW/DATASET=RUN", help=f"of one cell; {FORMS}")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    args = build_parser().parse_args(arguments)
    with cli_errors():
        if is_measured(args.table):
            return measure(args)
        table = load_published_table(args.table)
        add_runs(table, args.run)
        print_published_table(table, args.commands, {"rouge_1": rouge_1})
    if not args.commands:
        print(next_line(command("scripts/table.py", args.table, "--commands")))


def measure(args: argparse.Namespace) -> None:
    """Evaluates the parts of a measured table and writes their files."""
    table = load_measured_table(args.table)
    names = [part.name for part in table["parts"]]
    if unknown := sorted(set(args.part or []) - set(names)):
        raise ValueError(f"--part {', '.join(unknown)}: allowed are {', '.join(names)}")
    folder = Path(args.output or Path(args.outputs) / Path(args.table).stem)
    for part in table["parts"]:
        if args.part and part.name not in args.part:
            continue
        if args.commands:
            print("\n".join([*(command("train.py", *words) for words in part.train), ""]), end="")
            print(part_command(table, part, args.outputs))
            continue
        results = evaluate_part(table, part, args.outputs, evaluate)
        for file in write_part(folder, table, part, part_rows(table, part, results)):
            print(file)


def evaluate(words: list[str], variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of an evaluation's own reader, then of each variant; finished ones are not computed again."""
    cfg = compose_evaluation(words)
    with open_dict(cfg):
        cfg.variants = variants
    return EvaluationSession(TEXT).evaluate(cfg)


if __name__ == "__main__":
    main()
