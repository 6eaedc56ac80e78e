"""Does it matter what encoder and decoder were trained on? A grid of mixes of prose and formal text (arXiv 2602.01778).

    python scripts/studies/data_gap.py                                       # smoke form, minutes of a CPU
    python scripts/studies/data_gap.py --config-name study/data_gap_small    # real text, an hour of one core
    python scripts/studies/data_gap.py --config-name study/data_gap          # models of 29M weights, for a GPU
    python scripts/studies/data_gap.py tables=true                           # tables and figures only

Language models are trained from scratch on mixes D1, D2, ... with growing shares of formal text, with equal tokens and
steps. Pairs of an encoder and a decoder become autoencoders under one budget. OUTPUT/gap_per_doc.parquet has one row
per document and cell; gap.csv, gap_regression.csv, asymmetry.csv, mitigation.csv and the figures are made from it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from breviary.config.errors import report_user_errors, run_cli
from breviary.evaluation.session import EvaluationSession
from breviary.runtime.spelling import command, next_line, setting
from breviary.studies.data_gap.study import STUDY
from breviary.studies.frame import run_study
from data.text_pipeline import TEXT
from train import train

CONFIG = "study/data_gap_smoke"


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=CONFIG)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Runs the study."""
    run_study(STUDY, cfg, train, EvaluationSession(TEXT))
    again = ["tables=true", setting("output", cfg.output)]
    print(next_line(command("scripts/studies/data_gap.py", "--config-name", HydraConfig.get().job.config_name, *again)))


if __name__ == "__main__":
    run_cli(main, CONFIG)
