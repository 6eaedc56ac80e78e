"""Evaluates a trained run or a baseline: python eval.py run=outputs/NAME/RUN [dataset=nq] [key=value ...]

Top to bottom: Hydra composes the configuration, then it is resolved, checked, and every row of the table evaluated.
"""

from __future__ import annotations

from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from pathlib import Path

import hydra
from omegaconf import DictConfig

from breviary.config.errors import report_user_errors, run_cli
from breviary.evaluation.resolve import resolve_command_line
from breviary.evaluation.results import source_of
from breviary.evaluation.session import EvaluationSession
from breviary.evaluation.table import print_table, table_row, write_table
from breviary.runtime.distributed import end_process_group, rank
from data.text_pipeline import TEXT

CONFIG = "eval"


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=CONFIG)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Evaluates every row of the table; rank 0 prints and writes it."""
    cfg = resolve_command_line(cfg)
    results = EvaluationSession(TEXT).evaluate(cfg)
    if rank() == 0:
        rows = [table_row(result) for result in results]
        folder = Path(results[0]["run"] if cfg.run else Path(cfg.paths.outputs) / "eval")
        write_table(folder / "table.json", rows)
        print_table(
            rows,
            title=f"{rows[0]['n']} questions of the {cfg.split} split of {source_of(cfg.dataset, cfg.split)}",
            caption=f"95% bootstrap intervals; NLL in nats a token. Backbone: {results[0]['backbone']}.",
        )
    end_process_group()


if __name__ == "__main__":
    run_cli(main, CONFIG)
