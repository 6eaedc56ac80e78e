"""The teacher of a distillation: the adapters of another run, beside the reader's own on the same decoder."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from breviary.backbones.trainable import add_teacher
from breviary.config.errors import collect_errors
from breviary.contract import Reader
from breviary.runs.checkpoints import best_checkpoint, check_checkpoint, read_weights
from breviary.runs.folders import load_config

KEY = "objective.teacher"
PREFIX = "decoder."


def teacher_problems(cfg: DictConfig, backbone: Any) -> list[str]:
    """Error messages for the run that objective.teacher names. No weight is loaded."""
    run = cfg.objective.get("teacher")
    if not run:
        return []
    problems = check_checkpoint(KEY, run, best_checkpoint, backbone)
    trained = collect_errors(problems, load_config, run)
    if trained is not None and trained.decoder.train != "lora":
        problems.append(f"{KEY}={run}: its decoder was trained with {trained.decoder.train}; give a run with lora")
    return problems


def load_teacher(cfg: DictConfig, reader: Reader) -> None:
    """Adds the adapters of the run that objective.teacher names to the reader's decoder; nothing without one."""
    run = cfg.objective.get("teacher")
    if not run:
        return
    stored = read_weights(best_checkpoint(run), lambda name: name.startswith(f"{PREFIX}layers.") and ".lora_" in name)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    decoder = load_config(run).decoder
    add_teacher(reader.decoder, weights, decoder.lora_rank, decoder.lora_alpha)
