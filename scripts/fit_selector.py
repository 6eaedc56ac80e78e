"""Fits which attention heads choose what a reader by attention keeps, in about a minute; writes a run.

    python scripts/fit_selector.py experiment=attention_nq_small name=attention_nq_small_fit --examples 160
    python scripts/fit_selector.py outputs/attention_nq_small                    # of a trained run, on its own data
    python scripts/fit_selector.py RUN compressor.layer=12 compressor.window=12 --target attention

Key=value are those of train.py. RUN is a trained run: its configuration and weights, with heads: linear; overrides are
then single keys. The decoder stays as it is. The run that is written is evaluated, trained on (init_from=RUN) and
exported like any other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from omegaconf import DictConfig, OmegaConf, open_dict

from breviary.config.cli.words import runs_and_settings
from breviary.config.compose import chosen_compressor, compose_config
from breviary.config.errors import cli_errors, raise_problems
from breviary.runs.folders import load_config
from breviary.runtime.spelling import command, next_line
from breviary.training.selector import TARGETS, fit_selector
from data.text_pipeline import TEXT

READER = "attention"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="[RUN]|KEY=VALUE", help="a trained run; and settings of train.py")
    parser.add_argument("--examples", type=int, default=80, help="training examples, from the first (default 80)")
    parser.add_argument(
        "--target", choices=TARGETS, default="evidence", help="gold marks, or attention of deeper layers"
    )
    parser.add_argument("--teacher", type=int, metavar="LAYER", help="--target attention: the four layers below it")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Fits and prints the run's folder; exits with code 2 on wrong input."""
    options = build_parser().parse_intermixed_args(arguments)
    with cli_errors():
        runs, settings, problems = runs_and_settings(options.words, needs_run=False)
        if len(runs) > 1:
            problems.append(f"{' '.join(runs)}: one run at a time")
        raise_problems(problems)
        cfg = run_config(runs[0], settings) if runs else compose_config("train", settings)
        if cfg.reader is None:  # the row name in tables
            cfg.reader = chosen_compressor(settings) or READER
        folder = fit_selector(cfg, TEXT, options.examples, options.target, options.teacher)
    print(f"run {folder}")
    print(next_line(command("eval.py", folder)))


def run_config(run: str, settings: Sequence[str]) -> DictConfig:
    """A run's configuration that begins from its weights, with heads: linear and single keys changed."""
    cfg = load_config(run)
    with open_dict(cfg):
        cfg.init_from, cfg.resume = run, "never"
        if "heads" in cfg.compressor:
            cfg.compressor.heads = "linear"
        cfg.merge_with(OmegaConf.from_dotlist(list(settings)))
    return cfg


if __name__ == "__main__":
    main()
