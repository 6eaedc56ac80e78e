"""Which documents survive compression? Entropy under encoder and decoder against quality (arXiv 2602.01778).

    python scripts/study_input_entropy.py [key=value ...]          configs/study/input_entropy.yaml has the keys
    python scripts/study_input_entropy.py tables=true              tables and figures only, from per_doc.parquet

Documents of one length from several domains, and an entropy ladder of some of them. Two small language models of
different training are encoder and decoder, in both roles; train.py trains their autoencoders. OUTPUT/per_doc.parquet
has one row per document and setting; means.csv, corr.csv, regression.csv and the figures' CSV are made from it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import hydra
from omegaconf import DictConfig

from breviary.config.errors import report_user_errors, run_cli
from breviary.evaluation.session import EvaluationSession
from breviary.studies.frame import run_study
from breviary.studies.input_entropy.study import STUDY
from data.text_pipeline import TEXT
from train import train

CONFIG = "study/input_entropy"


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=CONFIG)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Runs the study."""
    run_study(STUDY, cfg, train, EvaluationSession(TEXT))


if __name__ == "__main__":
    run_cli(main, CONFIG)
