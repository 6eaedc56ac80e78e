"""Passkey retrieval by length of the text and depth of the key: a JSON file and heat maps.

    python scripts/passkey_map.py latest
    python scripts/passkey_map.py outputs/comet_passkey --words 390 1560 6240 --output results/comet_passkey/map
    python scripts/passkey_map.py outputs/comi_facts dataset=passkey --depths 0 0.5 1 --examples 20

RUN is a run of any reader trained on dataset=passkey. A cell is the exact match over EXAMPLES held-out texts. Writes
OUTPUT.json (cells with 95% intervals) and OUTPUT.png with one map per run. A line separates the lengths seen
in training (left) from longer ones. key=value are overrides as for eval.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from omegaconf import DictConfig

from breviary.config.cli.run_names import FORMS
from breviary.config.cli.words import runs_and_settings
from breviary.config.errors import ConfigError, cli_errors, raise_problems
from breviary.evaluation.passkey import measure_passkey
from breviary.evaluation.resolve import compose_evaluation, require_single_reader
from breviary.evaluation.session import EvaluationSession
from breviary.report.passkey import draw_passkey_maps
from breviary.runs.dataset_names import dataset_label
from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line, setting
from data.text_pipeline import TEXT


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words_given", nargs="+", metavar="RUN|KEY=VALUE", help=f"{FORMS}; and overrides")
    parser.add_argument("--words", type=int, nargs="+", default=[390, 1560, 6240], help="lengths in words")
    parser.add_argument("--depths", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="0 = start, 1 = end")
    parser.add_argument("--examples", type=int, default=10, help="texts per cell (default 10)")
    parser.add_argument("--output", default="outputs/passkey", help="path of both files, without extension")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every run and writes the files; exits with code 2 on wrong input."""
    options = build_parser().parse_intermixed_args(arguments)
    measured: dict[str, Any] = {"schema": 1, "examples": options.examples, "runs": [], "environment": environment()}
    session = EvaluationSession(TEXT)
    finished: list[dict[str, Any]] = []
    with cli_errors():
        runs, overrides, problems = runs_and_settings(options.words_given)
        raise_problems(problems)
        for run in runs:
            [cfg], _ = session.check(run_config(run, overrides))
            for row in measure_passkey(session, cfg, options.words, options.depths, options.examples):
                cell = row["cells"][-1]
                score = f"{cell['words']} words, depth {cell['depth']:.2f}: {cell['em']['value']:.2f}"
                print(f"  {row['reader']}: {score}", flush=True)
                measured["runs"] = [*finished, row]
                write_json(f"{options.output}.json", measured)  # after every cell, so that an interruption loses none
            finished = measured["runs"]
    draw_passkey_maps(Path(f"{options.output}.png"), measured["runs"])
    print(f"{options.output}.json, {options.output}.png")
    print(next_line(command("scripts/curves.py", *runs)))


def run_config(run: str, overrides: Sequence[str]) -> DictConfig:
    """The run's configuration with the overrides. Raises: ConfigError for another dataset than passkey."""
    cfg = compose_evaluation([setting("run", run), *overrides, "baselines=[]"])
    require_single_reader(cfg, "name further runs, or call this again")
    if "context_words" not in cfg.dataset:
        name = dataset_label(cfg.dataset, cfg.split)
        problem = f"{run}: its data set is {name}; give a run of dataset=passkey, or add dataset=passkey"
        raise ConfigError([problem])
    return cfg


if __name__ == "__main__":
    main()
