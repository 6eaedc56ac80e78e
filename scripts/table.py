"""A paper's table: published numbers beside ours, the command of every cell; with scale=, ours are computed.

    python scripts/table.py comi_main scale=small --plan
    python scripts/table.py comi_main scale=small
    python scripts/table.py comi_main scale=paper --plan --device h100
    python scripts/table.py comi_main --run comi_16x_qwen2_7b/nq=outputs/comi_nq
    python scripts/table.py alternatives --part nq_qwen25_coder
    python scripts/table.py ruler backbone=smollm2_135m dataset.length=4096 examples=20

The table is configs/table/NAME.yaml or any file of the same form; comi_main.yaml documents it. scale=paper has the
paper's backbones, scale=small the nearest experiments for a small machine. With scale=, what is missing is trained and
evaluated, finished cells are not computed again, a failed one shows its reason and log, and the same command resumes an
interrupted table. Markdown, CSV, LaTeX and HTML are written after every cell. --plan prints every command with hours
and memory, and starts nothing; without scale=, for both. A run given by --run is refused where its backbone, ratio,
data, prompt, number of examples or training is not the cell's. ruler and lost_in_the_middle also take settings.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from omegaconf import open_dict

from breviary.config.cli.run_names import FORMS
from breviary.config.errors import cli_errors
from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.results import PREDICTIONS
from breviary.evaluation.session import EvaluationSession
from breviary.report.tables.cells import finished_training
from breviary.report.tables.command import read_words, with_table, write_outcomes
from breviary.report.tables.form import load_published_table, scales_of
from breviary.report.tables.grid import run_grid
from breviary.report.tables.grid_form import is_grid, load_grid
from breviary.report.tables.measured import is_measured, load_measured_table, part_commands, run_parts
from breviary.report.tables.plan import DEVICES, find_device, measured_plan_lines, table_plan_lines
from breviary.report.tables.published import (
    add_runs,
    command_lines,
    further_metric,
    given_outcomes,
    print_published_table,
)
from breviary.report.tables.run import TableRun
from breviary.report.tables.trainings import Tools, start_process
from breviary.runtime.spelling import command, next_line
from data.metrics import rouge_1
from data.text_pipeline import TEXT

FURTHER = {"rouge_1": rouge_1}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table_words", nargs="+", metavar="TABLE|scale=SCALE", help="name in configs/table, or a file")
    parser.add_argument("--plan", action="store_true", help="print commands, hours and memory; start nothing")
    parser.add_argument("--device", help=f"for --plan: {', '.join(DEVICES)} (default: cpu, for scale=paper a100)")
    parser.add_argument("--only", action="append", default=[], metavar="ROW[/DATASET]", help="these cells alone")
    parser.add_argument("--commands", action="store_true", help="print the command of every cell")
    parser.add_argument("--run", action="append", default=[], metavar="ROW/DATASET=RUN", help=f"of one cell; {FORMS}")
    parser.add_argument("--part", action="append", metavar="NAME", help="of a table with parts; default: all")
    parser.add_argument("--outputs", metavar="FOLDER", help="of runs (default: outputs; with parts outputs/tables)")
    parser.add_argument("--output", metavar="FOLDER", help="of the table's files; default: outputs/tables/TABLE")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    args = build_parser().parse_intermixed_args(arguments)
    with cli_errors():
        name, scale, device, words = read_words(args.table_words, args.device)
        if is_measured(name):
            return measure(args, name, scale, device, words)
        if args.plan:
            for one in [scale] if scale else scales_of(name):
                table = load(args, name, one)
                lines = table_plan_lines(table, args.only, find_device(device, one), args.outputs or "outputs")
                print("\n".join([*lines, ""]))
        elif scale is None or args.commands:
            table = load(args, name, scale or "paper")
            if scale and args.commands:
                print("\n".join(command_lines(table)))
            else:
                print_published_table(table, args.commands, FURTHER)
        else:
            return compute(args, load(args, name, scale))
    print(next_line(with_table(name, scale or "small", "--plan" if not args.plan else "")))


def load(args: argparse.Namespace, name: str, scale: str) -> dict[str, Any]:
    """The table at a scale, with the runs and the folder of the command line."""
    table = load_published_table(name, scale)
    add_runs(table, args.run)
    return table | ({"folder": args.output} if args.output else {})


def compute(args: argparse.Namespace, table: dict[str, Any]) -> None:
    """Trains and evaluates what is missing, writing the files after each group of cells."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interruption: the training in progress ends, too
    given = given_outcomes(table, FURTHER)
    run = TableRun(table, args.outputs or "outputs", Tools(start_process, finished_training, evaluate, further))
    run.run(args.only, given, lambda: write_outcomes(table, run.outcomes))
    for file in write_outcomes(table, run.outcomes):
        print(file)
    print(next_line(with_table(table["given"], table["scale"], "--plan")))


def measure(args: argparse.Namespace, name: str, scale: str | None, device: str | None, words: list[str]) -> None:
    """Evaluates the parts of a table measured here, or the data sets of a grid, and writes their files."""
    if is_grid(name):
        table, run = load_grid(name, words, args.part, args.only), run_grid
    else:
        table, run = load_measured_table(name, scale, args.part), run_parts
    outputs, folder = args.outputs or "outputs/tables", Path(args.output or f"outputs/tables/{Path(name).stem}")
    if args.plan or args.commands:
        plan = measured_plan_lines(table, outputs, find_device(device, "small")) if args.plan else None
        print("\n".join(plan or [line for part in table["parts"] for line in part_commands(table, part, outputs)]))
    else:
        tools = Tools(start_process, finished_training, evaluate, further)
        for file in run(table, folder, outputs, tools):
            print(file)
    print(next_line(command("scripts/table.py", name, *words, "--plan" if not args.plan else "--commands")))


def evaluate(words: list[str], variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of an evaluation's own reader, then of each variant; finished ones are not computed again."""
    cfg = compose_evaluation(words)
    with open_dict(cfg):
        cfg.variants = variants
    return EvaluationSession(TEXT).evaluate(cfg)


def further(results: Mapping[str, Any], name: str) -> dict[str, float]:
    """A metric that is computed from the predictions."""
    return further_metric(Path(results["folder"]) / PREDICTIONS, FURTHER[name])


if __name__ == "__main__":
    main()
