"""Does it matter what encoder and decoder were trained on? A grid of mixes of prose and formal text (arXiv 2602.01778).

    python scripts/study_data_gap.py [key=value ...]                       smoke form, minutes of a CPU
    python scripts/study_data_gap.py --config-name study/data_gap_small    real text, an hour of one core
    python scripts/study_data_gap.py --config-name study/data_gap          the real one, for a GPU
    python scripts/study_data_gap.py tables=true                           tables and figures again

Language models from scratch on mixes D1, D2, ... with growing shares of formal text, same tokens and steps; every pair
of an encoder and a decoder becomes an autoencoder under one budget. OUTPUT/gap_per_doc.parquet has a row a document and
cell; gap.csv, gap_regression.csv, asymmetry.csv, mitigation.csv and the figures are made of it. Signs are as observed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_cli, which tells them in a sentence

import hydra
import torch
from omegaconf import DictConfig

from breviary.backbones.pretrained import Backbone
from breviary.config.errors import collect_errors, report_user_errors, run_cli
from breviary.config.keys import known_keys
from breviary.runs.environment import environment
from breviary.runs.folders import load_config
from breviary.studies.documents import TextDocument, cut_documents
from breviary.studies.model_gap import gaps
from breviary.studies.small_models import SmallModel, train_tokenizer, trained_model
from scripts import study_parts as parts
from scripts.gap_tables import RANDOM, cell_table, gap_figures, mix, small_tables

NAME = "study/data_gap_smoke"
KINDS = ("prose", "formal")
TOKENIZER_CHARACTERS = 2_000_000  # of each kind that the tokenizer is trained on


@dataclass
class Texts:
    """Documents by kind, for language models and autoencoders; those held out for the measurement; their tokenizer."""

    tokenizer: Any
    learned: dict[str, list[TextDocument]]
    test: list[TextDocument]

    def mixed(self, share: float, number: int) -> list[TextDocument]:
        """`number` documents, `share` of them formal."""
        formal = round(share * number)
        return self.learned["prose"][: number - formal] + self.learned["formal"][:formal]


def problems_of(cfg: DictConfig) -> list[str]:
    """What is wrong with the configuration, a sentence each; reads no text and no weights."""
    found, shares = parts.common_problems(cfg), list(cfg.shares)
    if len(set(shares)) < len(shares) or len(shares) < 2 or any(not 0 <= share <= 6 for share in shares):
        found.append(
            f"shares={shares}: must be at least two sixths from 0 to 6, all different: encoder and decoder of "
            "equal training have no gap to measure; e.g. [0,1,2,3,4,5]"
        )
    if len(cfg.mitigated) != 2 or set(cfg.mitigated) - set(shares) or len(set(cfg.mitigated)) < 2:
        found.append(
            f"mitigated={list(cfg.mitigated)}: must be two different ones of shares={shares}, encoder's and "
            "decoder's: between equal models there is nothing to mend"
        )
    if cfg.cells not in ("grid", "cross"):
        found.append(f"cells={cfg.cells}: allowed are grid, cross")
    for name, change in cfg.mitigations.items():
        unknown = sorted(set(change) - {"words", "model"})
        if unknown:
            found.append(f"mitigations.{name}: has {', '.join(unknown)}; allowed are words and model")
            continue
        found += SmallModel(**{**cfg.model, **change.get("model", {})}).problems(f"mitigations.{name}.model")
    return found


def gathered(cfg: DictConfig) -> Texts:
    """All documents of the study; raises ValueError for everything that is wrong with the texts."""
    told: list[str] = []
    sides = {}
    for kind in KINDS:
        sides[kind] = parts.both_sides(parts.sources_of(cfg[kind], told), cfg.held_out)
    parts.refuse(told)
    joined = {kind: [[source for items in side.values() for source in items] for side in sides[kind]] for kind in KINDS}
    tokenizer = train_tokenizer(
        ["\n".join(s.text for s in joined[kind][0])[:TOKENIZER_CHARACTERS] for kind in KINDS], cfg.vocabulary
    )
    most, half = max(cfg.shares), cfg.train_documents // 2
    needed = {"prose": max(cfg.model_documents, half), "formal": max(-(-most * cfg.model_documents // 6), half)}
    held = cfg.test_documents + cfg.probe_documents // 2
    learned, test = (
        {
            kind: collect_errors(told, cut_documents, kind, joined[kind][side], tokenizer, cfg.tokens, number[kind], 0)
            for kind in KINDS
        }
        for side, number in enumerate((needed, dict.fromkeys(KINDS, held)))
    )
    parts.refuse(told)
    return Texts(tokenizer, learned, [d for kind in KINDS for d in test[kind]])


def random_tokens(number: int, tokenizer: Any, n: int, seed: int) -> torch.Tensor:
    """(number, n + 2) documents of uniformly drawn tokens between BOS and the end token: the control."""
    drawn = torch.randint(2, len(tokenizer), (number, n), generator=torch.Generator().manual_seed(seed))
    ends = torch.tensor([[tokenizer.bos_token_id], [tokenizer.eos_token_id]]).expand(2, number)
    return torch.cat([ends[0][:, None], drawn, ends[1][:, None]], 1)


def language_model(cfg: DictConfig, texts: Texts, share: int | str, seed: int, **shape: Any) -> Path:
    """The folder of the model of one mix (a share in sixths, or RANDOM); `shape` changes keys of cfg.model."""
    if share == RANDOM:
        ids = random_tokens(cfg.model_documents, texts.tokenizer, cfg.tokens, seed)
    else:
        ids = parts.sequences(texts.mixed(share / 6, cfg.model_documents), texts.tokenizer)
    home = Path(cfg.paths.cache) / "study"
    return trained_model(SmallModel(**{**cfg.model, **shape}), ids, texts.tokenizer, home, mix(share), seed)


def cells_of(cfg: DictConfig) -> list[tuple[int, int | str]]:
    """(encoder, decoder) of every autoencoder."""
    shares, first = list(cfg.shares), cfg.shares[0]
    cells: list[tuple[int, int | str]] = [
        (e, d) for e in shares for d in shares if cfg.cells == "grid" or first in (e, d) or e == d
    ]
    return cells + [(first, RANDOM)] * cfg.random_control


def measured(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows a document and cell, rows a cell with the gaps between its models)."""
    texts = gathered(cfg)
    home, rows, cells = Path(cfg.paths.cache) / "study", [], []
    name = f"gap-{cfg.tokens}-{cfg.train_documents}.jsonl"
    file = parts.write_documents(home / name, texts.mixed(0.5, cfg.train_documents))
    probes = [d for kind in KINDS for d in [d for d in texts.test if d.domain == kind][: cfg.probe_documents // 2]]
    test, probe = [d for d in texts.test if d not in probes], parts.sequences(probes, texts.tokenizer)[:, :-1]
    known: dict[Any, Any] = {}

    def cell(
        seed: int, encoder: int, decoder: int | str, mended: str, folders: tuple[Path, Path], words: list[str]
    ) -> None:
        setting = {"seed": seed, "encoder": mix(encoder), "decoder": mix(decoder), "mitigation": mended}
        run = parts.autoencoder(
            cfg, *folders, cfg.rate, words, file, seed, f"gap-{mix(encoder)}-{mix(decoder)}-{mended}"
        )
        found = parts.restored(run, test, cfg.eval_batch_size, known)
        shared = {"n": cfg.tokens, "rate": cfg.rate, **setting}
        rows.extend({"doc_id": d.doc_id, "part": d.domain, **shared, **found[d.doc_id]} for d in test)
        distance = float("nan") if decoder == RANDOM else abs(encoder - decoder) / 6
        cells.append(
            {
                **setting,
                "mix_distance": distance,
                **gaps(
                    *(Backbone(str(folder), "float32") for folder in folders),
                    probe,
                    load_config(run).compressor.encoder_layers,
                ),
            }
        )

    for seed in cfg.seeds:
        models = {
            share: language_model(cfg, texts, share, seed)
            for share in (*cfg.shares, *([RANDOM] if cfg.random_control else []))
        }
        parts.say(f"seed {seed}: {len(models)} language models")
        for encoder, decoder in cells_of(cfg):
            cell(seed, encoder, decoder, "none", (models[encoder], models[decoder]), [])
        encoder, decoder = cfg.mitigated
        for mended, change in cfg.mitigations.items():
            other = language_model(cfg, texts, decoder, seed, **change.model) if "model" in change else models[decoder]
            cell(seed, encoder, decoder, mended, (models[encoder], other), list(change.get("words", [])))
    return rows, cells


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=NAME)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Measures, then writes tables and figures."""
    folder = Path(cfg.output)
    if not cfg.tables:
        parts.refuse(problems_of(cfg))
        started = environment()
        rows, cells = measured(cfg)
        parts.write_parquet(folder / "gap_per_doc.parquet", rows)
        parts.write_csv(folder / "model_gaps.csv", cells)
        parts.write_provenance(folder, "data_gap", cfg, started, autoencoders=len(cells))
    rows = parts.read_parquet(folder / "gap_per_doc.parquet")
    table = cell_table(rows, parts.read_csv(folder / "model_gaps.csv"))
    parts.write_csv(folder / "gap.csv", table)
    for name, found in small_tables(rows, table, cfg.resamples).items():
        if found:  # no mitigations: nothing to tell of them
            parts.write_csv(folder / f"{name}.csv", found)
    gap_figures(folder, table)
    parts.say(
        f"{folder}: gap_per_doc.parquet, gap.csv, gap_regression.csv, asymmetry.csv, mitigation.csv, model_gaps.csv, figures"
    )


def config_keys() -> list[str]:
    """Every key that the command line could have meant."""
    return known_keys(NAME)


if __name__ == "__main__":
    run_cli(main, config_keys)
