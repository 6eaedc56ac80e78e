"""Evaluates a trained run or a baseline: python eval.py [RUN] [GROUP=CHOICE ...] [KEY=VALUE ...]

    python eval.py latest
    python eval.py outputs/comi_facts dataset=nq examples=100 "variants=[{compressor.ratio: 8}]"
    python eval.py compressor=full_context backbone=smollm2_135m dataset=nq     # a baseline without a run

RUN (or run=RUN) is a run folder that train.py printed, a folder of runs (the newest finished one is taken), an
evaluation of a run, a folder that scripts/export.py wrote, or latest.
"""

from __future__ import annotations

from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from breviary.config.checks import missing_splits
from breviary.config.errors import report_user_errors, run_cli
from breviary.evaluation.resolve import EVAL_KEYS, resolve_command_line
from breviary.evaluation.session import EvaluationSession
from breviary.evaluation.table import print_table, table_row, write_table
from breviary.runs.dataset_names import dataset_label
from breviary.runtime.distributed import end_process_group, rank
from breviary.runtime.spelling import command, next_line
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
            title=f"{rows[0]['n']} questions of the {cfg.split} split of {dataset_label(cfg.dataset, cfg.split)}",
            caption="95% bootstrap intervals; NLL in nats a token.",
        )
        print(next_line(*next_commands(cfg, results, HydraConfig.get().overrides.task)))
    end_process_group()


def next_commands(cfg: DictConfig, results: Sequence[Mapping[str, Any]], words: Sequence[str]) -> list[str]:
    """What to do with the results: compare the rows question by question, look inside the memory, or train.

    words  settings of this call
    """
    if not cfg.run:
        return [command("train.py", *training_words(words, cfg.dataset))]
    others = dict.fromkeys(result["run"] for result in results[1:] if Path(result["run"]).is_dir())
    others.pop(cfg.run, None)
    lines = [command("scripts/compare.py", cfg.run, *others)] if others else []
    return [*lines, command("scripts/reading_map.py", cfg.run), command("scripts/report.py", Path(cfg.run).parent)]


def training_words(words: Sequence[str], dataset: DictConfig) -> list[str]:
    """The settings of a training on the same backbone and data as an evaluation without a run.

    words  of the evaluation. On other data where its data set, such as a suite, has nothing to train on
    """
    missing = missing_splits(dataset, ["train", "validation"])
    own = (*EVAL_KEYS, "compressor", *(["dataset"] if "train" in missing else []))
    others = [word for word in words if word.lstrip("+~").split("=")[0].split(".")[0] not in own]
    if missing == ["validation"]:
        others.append("train.eval_examples=0")
    if any(word.startswith("experiment=") for word in others):
        return others
    return ["compressor=comi", *others] if others else ["experiment=comi_facts"]


if __name__ == "__main__":
    run_cli(main, CONFIG)
