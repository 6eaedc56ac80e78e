"""Trains one reader: python train.py [experiment=NAME] [GROUP=CHOICE ...] [KEY=VALUE ...]

    python train.py experiment=comi_facts
    python train.py experiment=comi_facts backbone=smollm2_135m compressor.ratio=8 train.steps=500
    python train.py -m experiment=comi_facts compressor.ratio=2,4,8,16          # a sweep: a run for each value

It prints the run's folder first and last: RUN of the other commands.
"""

from __future__ import annotations

from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from pathlib import Path

import hydra
from omegaconf import DictConfig

from breviary.config.checks import missing_splits
from breviary.config.compose import resolve_choices
from breviary.config.errors import report_user_errors, run_cli
from breviary.runs.folders import load_config
from breviary.runs.sweeps import announced_sweep, current_sweep, resume_sweep
from breviary.runtime.distributed import end_process_group, print_rank0
from breviary.runtime.spelling import command, next_line
from breviary.training.session import TrainingSession
from data.text_pipeline import TEXT

CONFIG = "train"


def train(cfg: DictConfig) -> Path:
    """Runs one training; returns its run folder."""
    session = TrainingSession(cfg, TEXT)  # check: reports every problem at once, before any weight is loaded
    folder, checkpoint = session.open()  # the run folder, and the checkpoint to resume from
    if not session.is_finished:
        trainer = session.build(folder)  # weights, optimizer, log
        session.run(trainer, folder, checkpoint)
    return folder


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=CONFIG)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Top to bottom: Hydra composed the configuration; resolve, check, build, run."""
    resume_sweep(cfg, resolve_choices(cfg))
    run = train(cfg)
    end_process_group()
    if current_sweep() is None:  # a sweep names its own next command at its end
        print_rank0(next_line(command("eval.py", run, *evaluation_words(run))))


def evaluation_words(run: str | Path) -> list[str]:
    """The split of the run's data to evaluate on, where there is no test split; else none."""
    return ["split=validation"] if missing_splits(load_config(run).dataset, ["validation", "test"]) == ["test"] else []


if __name__ == "__main__":
    with announced_sweep():
        run_cli(main, CONFIG)
