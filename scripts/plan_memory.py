"""Estimates a training run before it starts: memory per GPU, the largest batch and context that fit, and hours.

    python scripts/plan_memory.py experiment=comi_nq backbone=qwen2_7b engine=zero2 gpus=8x80GB
    python scripts/plan_memory.py experiment=comet_scrolls engine=zero2 gpus=8x80GB --context 8192 32768 131072
    python scripts/plan_memory.py experiment=ram_nq backbone=llama2_7b engine=fsdp gpus=4x80GB --device h100

KEY=VALUE are settings of train.py, and gpus=NUMBERxMEMORYGB. A row of the table is a moment of a training step: loss,
backward pass, optimizer step, validation. The largest is the peak. Nothing is loaded, measured or downloaded: bytes and
FLOPs are counted (breviary/training/cost). The counts are within 10% of peaks measured on small models; CUDA,
communication and fragmentation take about 2 GB more on a GPU.
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

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from breviary.config.cli.words import runs_and_settings
from breviary.config.compose import compose_config
from breviary.config.errors import cli_errors, raise_problems
from breviary.config.keys import drop_unused_keys, validate_keys
from breviary.evaluation.table import TABLE_WIDTH, print_block
from breviary.runtime.spelling import command, next_line
from breviary.training.cost.devices import DEVICES, find_device, parse_gpus
from breviary.training.cost.parts import TextLengths
from breviary.training.cost.plan import COLUMNS, MemoryPlan, plan_lines, plan_rows

GPUS = "gpus="


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="KEY=VALUE", help="settings of train.py, and gpus=8x80GB")
    parser.add_argument("--context", type=int, nargs="+", help="context tokens (limits.max_context_tokens, else 8192)")
    parser.add_argument("--question", type=int, default=64, help="tokens of prefix and prompt (default 64)")
    parser.add_argument("--answer", type=int, help="supervised tokens (default 64; an autoencoder's: the context's)")
    parser.add_argument("--device", default="a100", help=f"for the hours: {', '.join(DEVICES)} (default a100)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the plan; exits with code 2 on wrong input."""
    args = build_parser().parse_intermixed_args(arguments)
    words = [word for word in args.words if not word.startswith(GPUS)]
    with cli_errors():
        gpus, memory = parse_gpus(next((word[len(GPUS) :] for word in args.words if word.startswith(GPUS)), "1x80GB"))
        plan = MemoryPlan.of(read_config(words), gpus, memory)
        device, lengths = find_device(args.device), text_lengths(args, plan)
        rows = [row for one in lengths for row in plan_rows(plan, one)]
        lines = [line for one in lengths for line in plan_lines(plan, one, device)]
    cfg, estimate = plan.cfg, plan.estimate(lengths[0])
    print(
        f"{cfg.compressor._target_.rpartition('.')[2]} on {Path(str(cfg.backbone.get('path', 'tiny'))).name}, engine "
        f"{cfg.engine.kind}, {plan.processes} x {memory / 1e9:g} GB, {cfg.backbone.dtype}; train.batch_size="
        f"{cfg.train.batch_size}, global batch {estimate.global_batch}; GB of each process, at {lengths[0].question} "
        f"question and {lengths[0].answer} answer tokens"
    )
    print_block(Console(width=TABLE_WIDTH), COLUMNS, rows)
    print("\n".join(lines))
    print(next_line(command("train.py", *words, processes=plan.processes)))


def read_config(words: Sequence[str]) -> DictConfig:
    """The configuration of train.py with these settings. Raises: ConfigError with all problems."""
    runs, settings, problems = runs_and_settings(words, needs_run=False)
    raise_problems([*problems, *(f"{run}: no setting KEY=VALUE" for run in runs)])
    cfg = compose_config("train", settings)
    drop_unused_keys(cfg, list(settings))
    if OmegaConf.is_missing(cfg, "init_from"):
        cfg.init_from = None  # the run of an earlier stage
    cfg, problems = validate_keys(cfg)
    raise_problems(problems)
    return cfg


def text_lengths(args: argparse.Namespace, plan: MemoryPlan) -> list[TextLengths]:
    """Lengths of each --context."""
    contexts = args.context or [plan.cfg.limits.max_context_tokens or 8192]
    sizes = [*(("--context", count) for count in contexts), ("--question", args.question)]
    raise_problems([f"{name} {count}: must be at least 1 token, e.g. 64" for name, count in sizes if count < 1])
    copies = plan.copies_context
    return [TextLengths(one, args.question, args.answer or (one if copies else 64)) for one in contexts]


if __name__ == "__main__":
    main()
