"""Which documents survive compression? Entropy under encoder and decoder against quality (arXiv 2602.01778).

    python scripts/studies/input_entropy.py                          # 12 to 20 minutes of one CPU core for each seed
    python scripts/studies/input_entropy.py "seeds=[0]" "rates=[4,8]" output=outputs/input_entropy
    python scripts/studies/input_entropy.py tables=true              # tables and figures only, from per_doc.parquet

Documents of one length from several domains, and an entropy ladder of some of them. Two small language models of
different training are encoder and decoder, in both roles; train.py trains their autoencoders. OUTPUT/per_doc.parquet
has one row per document and setting; means.csv, corr.csv, regression.csv and the figures' CSV are made from it.
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
from breviary.studies.input_entropy.study import STUDY
from data.text_pipeline import TEXT
from train import train

CONFIG = "study/input_entropy"


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=CONFIG)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Runs the study."""
    run_study(STUDY, cfg, train, EvaluationSession(TEXT))
    again = ["tables=true", setting("output", cfg.output)]
    print(
        next_line(
            command("scripts/studies/input_entropy.py", "--config-name", HydraConfig.get().job.config_name, *again)
        )
    )


if __name__ == "__main__":
    run_cli(main, CONFIG)
