"""Trains one reader: python train.py experiment=comi_facts backbone=smollm2_135m [key=value ...]

Reads top to bottom: compose -> check -> data -> check lengths -> build -> Trainer.
"""

from __future__ import annotations

from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import contextlib
import os
from pathlib import Path

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_cli, which tells them in a sentence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from breviary.config.build import build_backbone, build_reader
from breviary.config.checks import check_config, check_process_count, read_splits
from breviary.config.errors import ConfigError, collect_errors, report_user_errors, run_cli
from breviary.config.keys import drop_unused_keys, known_keys, validate_keys
from breviary.config.lengths import check_lengths
from breviary.contract import Generation, Reader
from breviary.runs.checkpoints import best_checkpoint, check_start, load_trained
from breviary.runs.folders import finish_run, open_run
from breviary.runtime.device import resolve_device
from breviary.runtime.distributed import (
    end_process_group,
    rank,
    start_process_group,
    take_launcher_arguments,
    world_size,
)
from breviary.training.engines import prepare_deepspeed, training_arguments
from breviary.training.log import RunLog
from breviary.training.pipeline import PipelineRank, join_pipeline_group, mapping
from breviary.training.trainer import ReaderTrainer, Validation
from data.collate import Collator
from data.metrics import scores
from data.prompts import Prompt
from data.tokenised import tokenise_split

ROOT = Path(__file__).resolve().parent


def train(cfg: DictConfig) -> Path:
    """One training run; gives its folder."""
    # 1. Check everything that needs no weights, and tell all problems at once.
    cfg, problems = validate_keys(cfg)
    backbone = build_backbone(cfg)
    problems += check_config(cfg, backbone, world_size()) + check_start(cfg, backbone)
    prompt = collect_errors(problems, Prompt, **cfg.prompt)
    validate = cfg.train.eval_examples > 0
    examples = read_splits(cfg, ["train", "validation"] if validate else ["train"], problems)
    if problems:
        raise ConfigError(problems)

    # 2. Data: tokenised once, kept under the hash of its content.
    tokenizer, splits = backbone.tokenizer(), {}
    for split, rows in examples.items():
        rows = rows[: cfg.train.eval_examples] if split == "validation" else rows
        splits[split] = tokenise_split(
            rows,
            tokenizer,
            prompt,
            cfg.limits.max_context_tokens,
            str(Path(cfg.paths.cache) / "tokenised"),
            cfg.limits.truncation,
        )
    problems = check_lengths(cfg, backbone, splits)
    problems += check_process_count(
        len(splits["train"]), world_size() // cfg.engine.ranks, "the size of the train split"
    )
    if problems:
        raise ConfigError(problems)

    # 3. The run's folder, printed first and last.
    device = resolve_device(backbone.device)
    if cfg.engine.kind == "zero":
        prepare_deepspeed(device)
    start_process_group(device, cfg.engine.timeout)
    folder, checkpoint = open_run(cfg)
    say(f"run {folder}" + (f", going on from {checkpoint.name}" if checkpoint else ""))
    for split, items in splits.items():
        say(f"{split}: {items.report()}")

    # 4. Weights and the Trainer.
    reader = build_reader(cfg, backbone, tokenizer)
    if cfg.init_from:
        start_from(cfg.init_from, reader, backbone.fingerprint)
    place = PipelineRank()
    if cfg.engine.ranks > 1:
        place = join_pipeline_group(cfg.engine.ranks, cfg.engine.timeout)
        reader.join_pipeline(place, cfg.engine.schedule)
        say(mapping(world_size(), cfg.engine.ranks))
    trained = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    say(
        f"{cfg.reader} on {backbone.fingerprint['name']}: {trained / 1e6:.2f} M trained of "
        f"{sum(p.numel() for p in reader.parameters()) / 1e6:.1f} M weights, {device}, {world_size()} process(es)"
    )
    validation = (
        Validation(splits["validation"], scores, Generation(**cfg.generation), cfg.eval_batch_size)
        if validate
        else None
    )
    half_deepspeed = cfg.engine.kind == "zero" and backbone.dtype == "bfloat16"
    log = RunLog(folder)
    trainer = ReaderTrainer(
        reader,
        training_arguments(cfg, folder, half_deepspeed, device, validate),
        splits["train"],
        Collator(tokenizer.pad_token_id or 0),
        validation,
        backbone.fingerprint,
        cfg.train.length_grouped,
        log,
        cfg.engine.ranks,
    )
    try:
        with place.watch or contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if rank() == 0:
            finish_run(folder)
    finally:
        say(f"run {folder}")
    return folder


def start_from(run: str, reader: Reader, fingerprint: dict[str, str]) -> None:
    """Loads the best weights of `run`; says which ones of the reader it did not train."""
    fresh = load_trained(best_checkpoint(run), reader, fingerprint, is_start=True)
    if fresh:
        say(f"init_from: {len(fresh)} weights that it did not train start as they are, {fresh[0]} first")


def say(text: str) -> None:
    """Prints on rank 0."""
    if rank() == 0:
        print(text, flush=True)


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="train")
@report_user_errors
def main(cfg: DictConfig) -> None:
    if cfg.reader is None:
        cfg.reader = HydraConfig.get().runtime.choices["compressor"]
    gone = drop_unused_keys(cfg, list(HydraConfig.get().overrides.task))
    if gone:
        say(f"not used with the chosen compressor or data: {', '.join(gone)}")
    train(cfg)
    end_process_group()


def config_keys() -> list[str]:
    """Every key that the command line could have meant."""
    return known_keys("train")


if __name__ == "__main__":
    take_launcher_arguments()
    run_cli(main, config_keys)
