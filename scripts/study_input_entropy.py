"""Which documents survive compression? Entropy under encoder and decoder against what is restored (arXiv 2602.01778).

    python scripts/study_input_entropy.py [key=value ...]          configs/study/input_entropy.yaml has the keys
    python scripts/study_input_entropy.py tables=true              tables and figures again, from per_doc.parquet

Documents of one length from several domains, and an entropy ladder of the same ones; two small language models of
different training as encoder and decoder, both ways round; autoencoders of them trained by train.py.
OUTPUT/per_doc.parquet has a row a document and setting; means.csv, corr.csv, regression.csv and the figures' CSV are
made of it. Signs are as observed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import os
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_cli, which tells them in a sentence

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from breviary.backbones.pretrained import Backbone
from breviary.backbones.trainable import TRAIN_MODES
from breviary.config.errors import report_user_errors, run_cli
from breviary.config.keys import known_keys
from breviary.runs.environment import environment
from breviary.studies.documents import AS_IS, TextDocument, apply_rung, rung_names
from breviary.studies.entropy import LN2, EntropyReader, text_measures
from breviary.studies.small_models import SmallModel, trained_model
from data.text_sources import Source
from scripts import study_parts as parts
from scripts.study_correlations import correlations, means, regressions
from scripts.study_figures import entropy_figures

NAME = "study/input_entropy"


def problems_of(cfg: DictConfig) -> list[str]:
    """What is wrong with the configuration, a sentence each; reads no text and no weights."""
    found = parts.common_problems(cfg)
    for name, own in cfg.models.items():
        unknown = sorted(set(own) - set(cfg.domains))
        if unknown or not own:
            found.append(
                f"models.{name}={list(own)}: must be names of domains, at least one; there are {', '.join(cfg.domains)}"
            )
    for pair in cfg.pairs:
        if len(pair) != 2 or set(pair) - set(cfg.models):
            found.append(
                f"pairs: {list(pair)} must be [encoder, decoder], two names of models; there are "
                f"{', '.join(cfg.models)}"
            )
        elif pair[0] == pair[1] or set(cfg.models[pair[0]]) == set(cfg.models[pair[1]]):
            found.append(
                f"pairs: {list(pair)}: encoder and decoder have the same training, so that a document has one "
                "entropy under both and nothing can be told of the one beside the other; give two models of "
                "different domains"
            )
    for mode in cfg.decoders:
        if mode not in TRAIN_MODES:
            found.append(f"decoders: {mode}: allowed are {', '.join(TRAIN_MODES)}")
    if cfg.test_documents * len(cfg.domains) < 8:
        found.append(
            f"test_documents={cfg.test_documents}: correlations need at least 8 documents in all, e.g. 150 of "
            "each domain"
        )
    if cfg.reference is not None:
        found += [f"reference: {problem}" for problem in instantiate(cfg.reference).problems()]
    return found


def gathered(
    cfg: DictConfig, sources: dict[str, list[Source]]
) -> tuple[Any, dict[str, list[TextDocument]], list[TextDocument]]:
    """Tokenizer, documents for training by domain, and held-out documents with their ladder."""
    tokenizer, train, test = parts.documents_of(cfg, sources)
    names = rung_names(cfg.ladder.repeats, cfg.ladder.windows, cfg.ladder.shares)
    ladder = [
        apply_rung(document, rung, tokenizer, cfg.tokens, 0)
        for items in test.values()
        for document in items[: cfg.ladder.documents]
        for rung in names
    ]
    return tokenizer, train, [d for items in test.values() for d in items] + [d for d in ladder if d is not None]


def small_models(
    cfg: DictConfig, tokenizer: Any, train: dict[str, list[TextDocument]], home: Path, seed: int
) -> dict[str, Path]:
    """{name: folder} of the language models of one seed."""
    folders = {}
    for name, own in cfg.models.items():
        minor = round(cfg.minor_share * cfg.train_documents)
        read = [d for domain, items in train.items() for d in (items if domain in own else items[:minor])]
        ids = parts.sequences(read, tokenizer)
        folders[name] = trained_model(SmallModel(**cfg.model), ids, tokenizer, home, name, seed)
        parts.say(f"language model {name}, seed {seed}: {len(read)} documents of {', '.join(own)}")
    return folders


def readings(backbone: Any, items: list[TextDocument], cache: Path, suffix: str, n: int) -> list[dict[str, float]]:
    """Entropies of every document under one model, as columns that end in `suffix`; bits a token of the document's n (a
    model with another tokenizer reads another number)."""
    found = EntropyReader(backbone, cache=cache, batch_size=32).read(d.text for d in items)
    return [
        {
            f"nll_{suffix}": row["bits_per_token"] * row["tokens"] / n,
            f"h_{suffix}": row["H"] / LN2 * row["tokens"] / n,
            f"bpb_{suffix}": row["bits_per_byte"],
            f"nll_std_{suffix}": row["nll_std"] / LN2,
            f"nll_max_{suffix}": row["nll_max"] / LN2,
        }
        for row in found
    ]


def measured(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(per_doc rows, rows of the loss curves): everything that takes time."""
    told: list[str] = []
    sources = parts.sources_of(cfg.domains, told)
    parts.refuse(told)
    tokenizer, train, test = gathered(cfg, sources)
    plain = sum(d.transform == AS_IS for d in test)
    parts.say(f"{sum(map(len, train.values()))} documents to learn from, {plain} held out, {len(test)} with the ladder")
    home = Path(cfg.paths.cache) / "study"
    file = parts.write_documents(home / f"train-{cfg.tokens}.jsonl", [d for items in train.values() for d in items])
    reference = None if cfg.reference is None else readings(instantiate(cfg.reference), test, home, "ref", cfg.tokens)
    known: dict[Any, Any] = {}
    rows, curves = [], []
    for seed in cfg.seeds:
        models = small_models(cfg, tokenizer, train, home, seed)
        under = {
            name: {
                side: readings(Backbone(str(folder), "float32"), test, home, side, cfg.tokens)
                for side in ("enc", "dec")
            }
            for name, folder in models.items()
        }
        for encoder, decoder in cfg.pairs:
            for rate in cfg.rates:
                for mode in cfg.decoders:
                    setting = {"pair": f"{encoder}>{decoder}", "dec_mode": mode, "rate": rate, "seed": seed}
                    name, words = f"{encoder}-{decoder}-{mode}-{rate}x", [f"decoder.train={mode}"]
                    run = parts.autoencoder(cfg, models[encoder], models[decoder], rate, words, file, seed, name)
                    found = parts.restored(run, test, cfg.eval_batch_size, known)
                    curves += [{**setting, **row} for row in parts.losses(run)]
                    columns = [under[encoder]["enc"], under[decoder]["dec"], reference]
                    rows += joined(cfg, setting, test, found, columns, tokenizer)
    return rows, curves


def joined(
    cfg: DictConfig,
    setting: dict[str, Any],
    items: list[TextDocument],
    found: dict[str, dict[str, float]],
    columns: list[list[dict[str, float]] | None],
    tokenizer: Any,
) -> list[dict[str, Any]]:
    """per_doc rows of one setting."""
    rows = []
    for i, d in enumerate(items):
        ids = tokenizer(d.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        controls = text_measures(d.text, ids)
        rows.append(
            {
                "doc_id": d.doc_id,
                "domain": d.domain,
                "source": d.source,
                "transform": d.transform,
                "n": cfg.tokens,
                **setting,
                **{name: value for column in columns if column for name, value in column[i].items()},
                **{name: controls[name] for name in ("bytes", "unigram_entropy", "zlib_ratio")},
                **found[d.doc_id],
            }
        )
    return rows


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=NAME)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Measures, then writes tables and figures."""
    folder = Path(cfg.output)
    if not cfg.tables:
        parts.refuse(problems_of(cfg))
        started = environment()
        rows, curves = measured(cfg)
        parts.write_parquet(folder / "per_doc.parquet", rows)
        parts.write_csv(folder / "loss.csv", curves)
        parts.write_provenance(folder, "input_entropy", cfg, started, documents=len({row["doc_id"] for row in rows}))
    rows = parts.read_parquet(folder / "per_doc.parquet")
    parts.write_csv(folder / "means.csv", means(rows, cfg.resamples))
    parts.write_csv(folder / "corr.csv", correlations(rows, cfg.resamples, cfg.bound))
    parts.write_csv(folder / "regression.csv", regressions(rows))
    entropy_figures(folder, rows)
    parts.say(f"{folder}: per_doc.parquet, means.csv, corr.csv, regression.csv, figures")


def config_keys() -> list[str]:
    """Every key that the command line could have meant."""
    return known_keys(NAME)


if __name__ == "__main__":
    run_cli(main, config_keys)
