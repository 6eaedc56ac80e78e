"""Trains one reader: python train.py experiment=comi_facts backbone=smollm2_135m [key=value ...]

Reads top to bottom: compose -> check -> data -> check lengths -> build -> Trainer.
"""

from __future__ import annotations

from breviary.runtime import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import contextlib
import os
from pathlib import Path

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_for_people, which tells them in a sentence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from breviary.build import build_backbone, build_reader
from breviary.checkpoint import load_trained
from breviary.checks import (Problems, attempted, config_problems, length_problems, process_problems, read_splits,
                             run_for_people, start_problems, tells_mistakes)
from breviary.contract import Generation
from breviary.distributed import (end_process_group, prepare_deepspeed, rank, start_process_group,
                                  take_launcher_arguments, world_size)
from breviary.keys import checked_keys, drop_left_overs, known_keys
from breviary.pipeline import Place, mapping, take_place
from breviary.runs import best_checkpoint, finish_run, open_run
from breviary.runtime import resolve_device
from breviary.training import ReaderTrainer, RunLog, Validation, training_arguments
from data.collate import Collator
from data.metrics import scores
from data.prompts import Prompt
from data.tokenised import tokenise_split

ROOT = Path(__file__).resolve().parent


def train(cfg: DictConfig) -> Path:
    """One training run; gives its folder."""
    # 1. Check everything that needs no weights, and tell all problems at once.
    cfg, problems = checked_keys(cfg)
    backbone = build_backbone(cfg)
    problems += config_problems(cfg, backbone, world_size()) + start_problems(cfg, backbone)
    prompt = attempted(problems, Prompt, **cfg.prompt)
    validate = cfg.train.eval_examples > 0
    examples = read_splits(cfg, ["train", "validation"] if validate else ["train"], problems)
    if problems:
        raise Problems(problems)

    # 2. Data: tokenised once, kept under the hash of its content.
    tokenizer, splits = backbone.tokenizer(), {}
    for split, rows in examples.items():
        rows = rows[: cfg.train.eval_examples] if split == "validation" else rows
        splits[split] = tokenise_split(rows, tokenizer, prompt, cfg.limits.max_context_tokens,
                                       str(Path(cfg.paths.cache) / "tokenised"), cfg.limits.truncation)
    problems = length_problems(cfg, backbone, splits)
    problems += process_problems(len(splits["train"]), world_size() // cfg.engine.ranks, "the size of the train split")
    if problems:
        raise Problems(problems)

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
    place = Place()
    if cfg.engine.ranks > 1:
        place = take_place(cfg.engine.ranks, cfg.engine.timeout)
        reader.join_pipeline(place, cfg.engine.schedule)
        say(mapping(world_size(), cfg.engine.ranks))
    trained = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    say(f"{cfg.reader} on {backbone.fingerprint['name']}: {trained / 1e6:.2f} M trained of "
        f"{sum(p.numel() for p in reader.parameters()) / 1e6:.1f} M weights, {device}, {world_size()} process(es)")
    validation = Validation(splits["validation"], scores, Generation(**cfg.generation), cfg.eval_batch_size) if validate else None
    half_deepspeed = cfg.engine.kind == "zero" and backbone.dtype == "bfloat16"
    log = RunLog(folder)
    trainer = ReaderTrainer(reader, training_arguments(cfg, folder, half_deepspeed, device, validate), splits["train"],
                            Collator(tokenizer.pad_token_id or 0), validation, backbone.fingerprint,
                            cfg.train.length_grouped, log, cfg.engine.ranks)
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
@tells_mistakes
def main(cfg: DictConfig) -> None:
    if cfg.reader is None:
        cfg.reader = HydraConfig.get().runtime.choices["compressor"]
    gone = drop_left_overs(cfg, list(HydraConfig.get().overrides.task))
    if gone:
        say(f"not used with the chosen compressor or data: {', '.join(gone)}")
    train(cfg)
    end_process_group()


def config_keys() -> list[str]:
    """Every key that the command line could have meant."""
    return known_keys("train")


if __name__ == "__main__":
    take_launcher_arguments()
    run_for_people(main, config_keys)
