"""Trains one reader: python train.py experiment=comi_facts backbone=smollm2_135m [key=value ...]

Top to bottom: Hydra composes the configuration, then resolve, check, build, run.
"""

from __future__ import annotations

from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from pathlib import Path

import hydra
from omegaconf import DictConfig

from breviary.config.compose import resolve_choices
from breviary.config.errors import report_user_errors, run_cli
from breviary.runtime.distributed import end_process_group
from breviary.training.session import TrainingSession
from data.text_pipeline import TEXT

CONFIG = "train"


def train(cfg: DictConfig) -> Path:
    """Runs one training; returns its run folder."""
    session = TrainingSession(cfg, TEXT)  # check: reports every problem at once, before any weight is loaded
    folder, checkpoint = session.open()  # the run folder, and the checkpoint to resume from
    trainer = session.build(folder)  # weights, optimizer, log
    session.run(trainer, folder, checkpoint)
    return folder


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=CONFIG)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Resolves the command line's choices and trains."""
    resolve_choices(cfg)
    train(cfg)
    end_process_group()


if __name__ == "__main__":
    run_cli(main, CONFIG)
