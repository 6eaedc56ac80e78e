"""How large should encoder and decoder be? Rate, quality and time for every pair of sizes (arXiv 2602.01778).

    python scripts/studies/sizes.py                          # half an hour of one CPU core
    python scripts/studies/sizes.py "seeds=[0,1,2]" "rates=[4]" output=outputs/sizes
    python scripts/studies/sizes.py tables=true              # tables and figure only, of per_doc.parquet, times.csv

Language models of several sizes (or vocabularies) are trained from scratch on the same sources. Every pair of them
becomes an autoencoder at every rate, under one budget. OUTPUT/per_doc.parquet has one row per document and setting,
times.csv one row per round and setting; sizes.csv, swaps.csv and pareto.png are made from them. Times are compared with
the same decoder reading the whole text.
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
from breviary.studies.frame import run_study
from breviary.studies.sizes.study import STUDY
from data.text_pipeline import TEXT
from train import train

CONFIG = "study/sizes"


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=CONFIG)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Runs the study."""
    run_study(STUDY, cfg, train, EvaluationSession(TEXT))
    again = ["tables=true", setting("output", cfg.output)]
    print(next_line(command("scripts/studies/sizes.py", "--config-name", HydraConfig.get().job.config_name, *again)))


if __name__ == "__main__":
    run_cli(main, CONFIG)
