"""Trains one reader: python train.py experiment=comi_facts backbone=smollm2_135m [key=value ...]

Reads top to bottom: compose -> check -> data -> check lengths -> build -> Trainer.
"""

from __future__ import annotations

from breviary.runtime import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import os
from pathlib import Path

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_for_people, which tells them in a sentence

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from breviary.build import build_backbone, build_reader
from breviary.checkpoint import load_trained
from breviary.checks import Problems, config_problems, flat_keys, length_problems, process_problems, run_for_people
from breviary.contract import Generation
from breviary.distributed import prepare_single_process, rank, start_process_group, world_size
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
    validate = cfg.train.eval_examples > 0

    # 1. Check everything that needs no weights, and tell all problems at once.
    backbone, dataset = build_backbone(cfg), instantiate(cfg.dataset)
    wanted = ["train", "validation"] if validate else ["train"]
    problems = config_problems(cfg, backbone, world_size()) + dataset.problems(wanted)
    if problems:
        raise Problems(problems)

    # 2. Data: tokenised once, kept under the hash of its content.
    tokenizer, prompt = backbone.tokenizer(), Prompt(**cfg.prompt)
    splits = {}
    for split in wanted:
        examples = dataset.examples(split)
        examples = examples[: cfg.train.eval_examples] if split == "validation" else examples
        splits[split] = tokenise_split(examples, tokenizer, prompt, cfg.limits.max_context_tokens,
                                       str(Path(cfg.paths.cache) / "tokenised"), cfg.limits.truncation)
    problems = length_problems(cfg, backbone, splits)
    problems += process_problems(len(splits["train"]), world_size(), "the size of the train split")
    if problems:
        raise Problems(problems)

    # 3. The run's folder, printed first and last.
    device = resolve_device(backbone.device)
    if cfg.engine.kind == "zero":
        prepare_single_process()
    start_process_group(device)
    folder, checkpoint = open_run(cfg)
    say(f"run {folder}" + (f", going on from {checkpoint.name}" if checkpoint else ""))
    for split, items in splits.items():
        say(f"{split}: {items.report()}")

    # 4. Weights and the Trainer.
    reader = build_reader(cfg, backbone, tokenizer)
    if cfg.init_from:
        load_trained(best_checkpoint(cfg.init_from), reader, backbone.fingerprint)
    trained = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    say(f"{cfg.reader} on {backbone.fingerprint['name']}: {trained / 1e6:.2f} M trained of "
        f"{sum(p.numel() for p in reader.parameters()) / 1e6:.1f} M weights, {device}, {world_size()} process(es)")
    validation = Validation(splits["validation"], scores, Generation(**cfg.generation), cfg.eval_batch_size) if validate else None
    half_deepspeed = cfg.engine.kind == "zero" and backbone.dtype == "bfloat16"
    log = RunLog(folder)
    trainer = ReaderTrainer(reader, training_arguments(cfg, folder, half_deepspeed, device, validate), splits["train"],
                            Collator(tokenizer.pad_token_id or 0), validation, backbone.fingerprint,
                            cfg.train.length_grouped, log)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if rank() == 0:
            finish_run(folder)
    finally:
        say(f"run {folder}")
    return folder


def say(text: str) -> None:
    """Prints on rank 0."""
    if rank() == 0:
        print(text, flush=True)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    if cfg.reader is None:
        cfg.reader = HydraConfig.get().runtime.choices["compressor"]
    train(cfg)


def config_keys() -> list[str]:
    """Every key of the default configuration."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return flat_keys(compose("train"))


if __name__ == "__main__":
    run_for_people(main, config_keys)
