"""Does it matter on which data encoder and decoder were trained (arXiv 2602.01778)?

Language models trained from scratch on mixes D1, D2, ... with growing shares of formal text; tokens and steps are
equal. Pairs of an encoder and a decoder become autoencoders under one budget. Mitigations are tried on one unmatched
pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from pandas import DataFrame
from torch import Tensor

from breviary.backbones.pretrained import Backbone
from breviary.config.errors import collect_errors, raise_problems
from breviary.runs.folders import load_config
from breviary.runtime.distributed import print_rank0
from breviary.studies.autoencoders import AutoencoderRunner
from breviary.studies.corpus import Corpus, Documents, build_corpus, load_sources, token_sequences, write_examples
from breviary.studies.data_gap.figures import draw_figures
from breviary.studies.data_gap.tables import (
    RANDOM,
    asymmetries,
    cell_table,
    gap_regressions,
    mitigation_effects,
    mix_name,
)
from breviary.studies.documents import TextDocument
from breviary.studies.frame import Study, Tables, common_problems
from breviary.studies.model_gap import model_gaps
from breviary.studies.small_models import SmallModel, train_language_model

KINDS = ("prose", "formal")
TOKENIZER_CHARACTERS = 2_000_000  # of each kind


def config_problems(cfg: DictConfig) -> list[str]:
    """Error messages about the configuration; reads no text and no weights."""
    problems, shares = common_problems(cfg), list(cfg.shares)
    if len(set(shares)) < len(shares) or len(shares) < 2 or any(not 0 <= share <= 6 for share in shares):
        problems.append(
            f"shares={shares}: must be at least two sixths from 0 to 6, all different: encoder and decoder of "
            "equal training have no gap to measure; e.g. [0,1,2,3,4,5]"
        )
    if len(cfg.mitigated) != 2 or set(cfg.mitigated) - set(shares) or len(set(cfg.mitigated)) < 2:
        problems.append(
            f"mitigated={list(cfg.mitigated)}: must be two different ones of shares={shares}, encoder's and "
            "decoder's: equal models have no gap to mitigate"
        )
    if cfg.cells not in ("grid", "cross"):
        problems.append(f"cells={cfg.cells}: allowed are grid, cross")
    for name, change in cfg.mitigations.items():
        unknown = sorted(set(change) - {"words", "model"})
        if unknown:
            problems.append(f"mitigations.{name}: has {', '.join(unknown)}; allowed are words and model")
            continue
        problems += SmallModel(**{**cfg.model, **change.get("model", {})}).problems(f"mitigations.{name}.model")
    return problems


def prepare_corpus(cfg: DictConfig) -> Corpus:
    """Documents of the two kinds, enough for every mix. Raises ConfigError with everything wrong with the texts."""
    problems: list[str] = []
    loaded = {kind: collect_errors(problems, load_sources, cfg[kind]) for kind in KINDS}
    raise_problems(problems)
    sources = {
        kind: [source for items in by_name.values() for source in items] for kind, by_name in loaded.items() if by_name
    }
    half = cfg.train_documents // 2
    train_documents = {
        "prose": max(cfg.model_documents, half),
        "formal": max(-(-max(cfg.shares) * cfg.model_documents // 6), half),
    }
    held_out = cfg.test_documents + cfg.probe_documents // 2
    return build_corpus(
        sources, cfg.tokens, cfg.vocabulary, cfg.held_out, train_documents, held_out, TOKENIZER_CHARACTERS
    )


def mixed_documents(documents: Documents, share: float, number: int) -> list[TextDocument]:
    """`number` documents, `share` of them formal."""
    formal = round(share * number)
    return documents["prose"][: number - formal] + documents["formal"][:formal]


def random_sequences(number: int, tokenizer: Any, n: int, seed: int) -> Tensor:
    """(number, n + 2) int64: uniformly drawn tokens between BOS and the end token, the control."""
    drawn = torch.randint(2, len(tokenizer), (number, n), generator=torch.Generator().manual_seed(seed))
    bos, eos = (torch.full((number, 1), id) for id in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    return torch.cat([bos, drawn, eos], 1)


def language_model(cfg: DictConfig, corpus: Corpus, share: int | str, seed: int, **shape: Any) -> Path:
    """The folder of the model of one mix (a share in sixths, or RANDOM); `shape` overrides keys of cfg.model."""
    if isinstance(share, str):
        ids = random_sequences(cfg.model_documents, corpus.tokenizer, cfg.tokens, seed)
    else:
        ids = token_sequences(mixed_documents(corpus.train, share / 6, cfg.model_documents), corpus.tokenizer)
    model = SmallModel(**{**cfg.model, **shape})
    return train_language_model(model, ids, corpus.tokenizer, Path(cfg.paths.cache) / "study", mix_name(share), seed)


def grid_pairs(cfg: DictConfig) -> list[tuple[int, int | str]]:
    """(encoder, decoder) of every autoencoder without mitigation, as shares in sixths or RANDOM."""
    shares, first = list(cfg.shares), cfg.shares[0]
    pairs: list[tuple[int, int | str]] = [
        (encoder, decoder)
        for encoder in shares
        for decoder in shares
        if cfg.cells == "grid" or first in (encoder, decoder) or encoder == decoder
    ]
    return pairs + [(first, RANDOM)] * cfg.random_control


@dataclass(frozen=True)
class Cell:
    """One autoencoder of one seed: the mixes of its models (shares in sixths, or RANDOM) and the models' folders."""

    encoder_share: int
    decoder_share: int | str
    encoder: Path
    decoder: Path
    mitigation: str = "none"
    overrides: tuple[str, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """The columns encoder, decoder and mitigation."""
        mixes = {"encoder": mix_name(self.encoder_share), "decoder": mix_name(self.decoder_share)}
        return mixes | {"mitigation": self.mitigation}

    @property
    def mix_distance(self) -> float:
        """Difference of the shares of formal text; nan for the random control."""
        if isinstance(self.decoder_share, str):
            return float("nan")
        return abs(self.encoder_share - self.decoder_share) / 6


def cells_of_seed(cfg: DictConfig, corpus: Corpus, seed: int) -> Iterator[Cell]:
    """Every autoencoder of one seed; trains the language models."""
    shares = [*cfg.shares, *([RANDOM] if cfg.random_control else [])]
    models = {share: language_model(cfg, corpus, share, seed) for share in shares}
    print_rank0(f"seed {seed}: {len(models)} language models")
    for encoder, decoder in grid_pairs(cfg):
        yield Cell(encoder, decoder, models[encoder], models[decoder])
    encoder, decoder = cfg.mitigated
    for name, change in cfg.mitigations.items():
        other = language_model(cfg, corpus, decoder, seed, **change.model) if "model" in change else models[decoder]
        yield Cell(encoder, decoder, models[encoder], other, name, tuple(change.get("words", [])))


def measure(cfg: DictConfig, runner: AutoencoderRunner) -> Tables:
    """gap_per_doc.parquet (one row per document and cell) and model_gaps.csv (one row per cell)."""
    corpus = prepare_corpus(cfg)
    file = Path(cfg.paths.cache) / "study" / f"gap-{cfg.tokens}-{cfg.train_documents}.jsonl"
    examples = write_examples(file, mixed_documents(corpus.train, 0.5, cfg.train_documents))
    number = cfg.probe_documents // 2
    probe_documents = [document for kind in KINDS for document in corpus.test[kind][:number]]
    test = [document for kind in KINDS for document in corpus.test[kind][number:]]
    probes = token_sequences(probe_documents, corpus.tokenizer)[:, :-1]
    origin = origin_columns(test)
    rows, cells = [], []
    for seed in cfg.seeds:
        for cell in cells_of_seed(cfg, corpus, seed):
            setting, name = {"seed": seed, **cell.names}, f"gap-{'-'.join(cell.names.values())}"
            run = runner.train(cell.encoder, cell.decoder, cfg.rate, cell.overrides, examples, seed, name)
            quality = runner.evaluate(run, test)
            rows.append(pd.concat([origin.assign(n=cfg.tokens, rate=cfg.rate, **setting), quality], axis=1))
            encoder, decoder = (Backbone(str(folder), "float32") for folder in (cell.encoder, cell.decoder))
            gaps = model_gaps(encoder, decoder, probes, load_config(run).compressor.encoder_layers)
            cells.append({**setting, "mix_distance": cell.mix_distance, **gaps})
    return {
        "gap_per_doc.parquet": pd.concat(rows).rename_axis("doc_id").reset_index(),
        "model_gaps.csv": DataFrame(cells),
    }


def origin_columns(documents: Sequence[TextDocument]) -> DataFrame:
    """The part (prose or formal) of every document, indexed by doc_id."""
    return DataFrame({"part": [d.domain for d in documents]}, index=[d.doc_id for d in documents])


def derived_tables(cfg: DictConfig, inputs: Mapping[str, DataFrame]) -> Tables:
    """gap.csv, gap_regression.csv, asymmetry.csv, and mitigation.csv where there are mitigations."""
    rows = inputs["gap_per_doc.parquet"]
    cells = cell_table(rows, inputs["model_gaps.csv"])
    tables = {
        "gap.csv": cells,
        "gap_regression.csv": gap_regressions(cells),
        "asymmetry.csv": asymmetries(rows, cfg.resamples),
        "mitigation.csv": mitigation_effects(rows, cfg.resamples),
    }
    return {name: table for name, table in tables.items() if len(table)}


STUDY = Study(
    name="data_gap",
    inputs=("gap_per_doc.parquet", "model_gaps.csv"),
    problems=config_problems,
    measure=measure,
    tables=derived_tables,
    figures=draw_figures,
    counts=lambda measured: {"autoencoders": len(measured["model_gaps.csv"])},
)
