"""Shows in the document how a reader compressed it: one HTML page that needs no other file.

    python scripts/reading_map.py latest
    python scripts/reading_map.py outputs/ram_facts n=40 output=map.html
    python scripts/reading_map.py compressor=ram backbone=smollm2_135m dataset=nq_gold4     # an untrained reader

RUN and the keys are those of eval.py, with n and output. The reader answers the first n questions of the split.
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
from breviary.evaluation.resolve import resolve_command_line
from breviary.evaluation.session import EvaluationSession
from breviary.report.reading_map import make_reading_map
from breviary.runtime.spelling import command, next_line
from data.text_pipeline import TEXT

CONFIG = "reading_map"
OWN_KEYS = ("n", "output")  # keys of configs/reading_map.yaml that eval.yaml does not have


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=CONFIG)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Writes the page and prints its path."""
    n, output = cfg.n, cfg.output
    cfg = resolve_command_line(cfg, OWN_KEYS)
    file = make_reading_map(EvaluationSession(TEXT), cfg, n, None if output is None else str(output))
    print(f"reading map {file}")
    exported = ["--output", f"exported/{cfg.reader}"]
    after_run = [command("eval.py", cfg.run), command("scripts/export.py", cfg.run, *exported)]
    print(next_line(*(after_run if cfg.run else [command("train.py", "experiment=ram_facts")])))


if __name__ == "__main__":
    run_cli(main, CONFIG)
