"""Where a reader still finds the pass key: length of the text by depth of the key, as a table and a heat map.

    python scripts/passkey_map.py RUN [RUN ...] [--words 390 1560 6240] [--depths 0 0.25 0.5 0.75 1] [--examples 10]
                                  [--output results/comet_passkey] [key=value ...]

RUN is a run of any reader trained on dataset=passkey; further words are keys as eval.py takes them. Every cell: share of
EXAMPLES held-out texts whose key is written down exactly. Writes OUTPUT.json (cells with 95% bootstrap intervals) and
OUTPUT.png, one map a run, the lengths of training to the left of the line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from breviary.config.build import build_backbone
from breviary.config.errors import ConfigError
from breviary.config.keys import allow_run_keys, validate_keys
from breviary.contract import Generation
from breviary.evaluation.loop import evaluate
from breviary.evaluation.statistics import interval
from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from data.collate import Collator
from data.metrics import scores
from eval import checked, checkpoint_of, loaded, of_one_reader, say, settle, tokenised


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, and key=value")
    parser.add_argument("--words", type=int, nargs="+", default=[390, 1560, 6240], help="lengths, words")
    parser.add_argument("--depths", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="0 = start, 1 = end")
    parser.add_argument("--examples", type=int, default=10, help="texts of each cell (default 10)")
    parser.add_argument("--output", default="outputs/passkey", help="without ending")
    given = parser.parse_intermixed_args(arguments)
    words = [word for word in given.runs if "=" in word]
    measured: dict[str, Any] = {"schema": 1, "examples": given.examples, "runs": [], "environment": environment()}
    try:
        for run in (run for run in given.runs if run not in words):
            for row in measure(run, words, given.words, given.depths, given.examples):
                measured["runs"] = [*(other for other in measured["runs"] if other["run"] != run), row]
                write_json(f"{given.output}.json", measured)  # after every cell: what is cut short keeps what it has
    except ValueError as error:
        for sentence in str(error).splitlines():
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    draw(measured["runs"], Path(f"{given.output}.png"))
    say(f"{given.output}.json, {given.output}.png")


def measure(
    run: str, words: list[str], lengths: list[int], depths: list[float], examples: int
) -> Iterator[dict[str, Any]]:
    """The cells of one run, given again with each one more: {"run", "reader", "trained_words", "cells": [{"words", "depth",
    "tokens", "em", ...}]}."""
    cfg = settled(run, words)
    backbone = build_backbone(cfg)
    reader = loaded(cfg, backbone, checkpoint_of(cfg))
    row = {
        "run": run,
        "reader": cfg.reader,
        "trained_words": cfg.dataset.context_words,
        "cells": [],
        "compressor": dict(cfg.compressor),
    }
    for length in lengths:
        for depth in depths:
            row["cells"].append(cell(cfg, backbone, reader, length, depth, examples))
            say(f"  {cfg.reader}: {length} words, depth {depth:.2f}: {row['cells'][-1]['em']['value']:.2f}")
            yield row


def settled(run: str, words: list[str]) -> DictConfig:
    """The run's configuration for evaluation, `words` changed in it; checked."""
    overrides = [f"run={run}", *words, "baselines=[]"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = of_one_reader(
            settle(compose("eval", allow_run_keys(overrides)), overrides), "name further runs, or call this again"
        )
    if "context_words" not in cfg.dataset:
        raise ConfigError(
            [f"{run}: trained on {cfg.dataset._target_}; give a run of dataset=passkey, or dataset=passkey as well"]
        )
    cfg, problems = validate_keys(cfg)
    [cfg], _ = checked(cfg, problems)
    return cfg


def cell(cfg: DictConfig, backbone: Any, reader: Any, length: int, depth: float, examples: int) -> dict[str, Any]:
    """Answers `examples` texts of one length and depth."""
    with open_dict(cfg):
        cfg.dataset.context_words, cfg.dataset.depth, cfg.dataset.test_size = length, depth, examples
        cfg.dataset.least_words = None
    items = tokenised(cfg, backbone, instantiate(cfg.dataset).examples("test"))
    collate = Collator(backbone.tokenizer().pad_token_id or 0)
    rows = [
        row
        for batch in evaluate(reader, items, collate, scores, Generation(**cfg.generation), cfg.eval_batch_size)
        for row in batch
    ]
    found = np.array([row["scores"]["em"] for row in rows])
    return {
        "words": length,
        "depth": depth,
        "tokens": round(float(np.mean([row["context_tokens"] for row in rows]))),
        "slots": round(float(np.mean([row["memory_slots"] for row in rows])), 1),
        "em": interval(found, np.ones(len(found)), seed=0, resamples=2000),
        "nll": float(sum(row["nll"] for row in rows) / sum(row["answer_tokens"] for row in rows)),
    }


def draw(runs: list[dict[str, Any]], file: Path) -> None:
    """One heat map a run."""
    figure, axes = plt.subplots(1, len(runs), figsize=(1.5 + 4.2 * len(runs), 3.8), layout="constrained", squeeze=False)
    for axis, run in zip(axes[0], runs):
        lengths, depths = (sorted({cell[key] for cell in run["cells"]}) for key in ("words", "depth"))
        grid = np.array(
            [
                [next(c["em"]["value"] for c in run["cells"] if (c["words"], c["depth"]) == (w, d)) for w in lengths]
                for d in depths
            ]
        )
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8)
        tokens = {c["words"]: c["tokens"] for c in run["cells"]}
        axis.set_xticks(range(len(lengths)), [f"{tokens[w]:,}" for w in lengths])
        axis.set_yticks(range(len(depths)), [f"{d:.2f}" for d in depths])
        axis.set(title=run["reader"], xlabel="tokens of the text", ylabel="depth of the key")
        inside = sum(w <= run["trained_words"] for w in lengths)
        if 0 < inside < len(lengths):
            axis.axvline(inside - 0.5, color="black", lw=1.5)
    figure.colorbar(image, ax=axes[0].tolist(), label="exact match")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
