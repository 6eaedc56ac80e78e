"""Does entropy under the encoder or the decoder determine how well a document is reconstructed (arXiv 2602.01778)?

Documents of one length from several domains, and an entropy ladder of some of them. Two small language models trained
on different domains are encoder and decoder, in both roles; their autoencoders are trained under one budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from pandas import DataFrame

from breviary.backbones.pretrained import Backbone
from breviary.backbones.trainable import TRAIN_MODES
from breviary.runtime.distributed import print_rank0
from breviary.studies.autoencoders import AutoencoderRunner, training_losses
from breviary.studies.corpus import Corpus, build_corpus, load_sources, token_sequences, write_examples
from breviary.studies.documents import TextDocument, apply_rung, rung_names
from breviary.studies.entropy import LN2, EntropyMeter, text_measures
from breviary.studies.frame import Study, Tables, common_problems
from breviary.studies.input_entropy.figures import draw_figures
from breviary.studies.input_entropy.tables import correlations, group_means, regressions
from breviary.studies.small_models import SmallModel, train_language_model


def config_problems(cfg: DictConfig) -> list[str]:
    """Error messages about the configuration; reads no text and no weights."""
    problems = common_problems(cfg)
    for name, domains in cfg.models.items():
        unknown = sorted(set(domains) - set(cfg.domains))
        if unknown or not domains:
            problems.append(
                f"models.{name}={list(domains)}: must be names of domains, at least one; there are "
                f"{', '.join(cfg.domains)}"
            )
    for pair in cfg.pairs:
        if len(pair) != 2 or set(pair) - set(cfg.models):
            problems.append(
                f"pairs: {list(pair)} must be [encoder, decoder], two names of models; there are "
                f"{', '.join(cfg.models)}"
            )
        elif pair[0] == pair[1] or set(cfg.models[pair[0]]) == set(cfg.models[pair[1]]):
            problems.append(
                f"pairs: {list(pair)}: encoder and decoder have the same training, so a document has the same entropy "
                "under both and the two cannot be compared; give two models of different domains"
            )
    for mode in cfg.decoders:
        if mode not in TRAIN_MODES:
            problems.append(f"decoders: {mode}: allowed are {', '.join(TRAIN_MODES)}")
    if cfg.test_documents * len(cfg.domains) < 8:
        problems.append(
            f"test_documents={cfg.test_documents}: correlations need at least 8 documents in all, "
            "e.g. 150 of each domain"
        )
    if cfg.reference is not None:
        problems += [f"reference: {problem}" for problem in instantiate(cfg.reference).problems()]
    return problems


def measure(cfg: DictConfig, runner: AutoencoderRunner) -> Tables:
    """per_doc.parquet (one row per document and setting) and loss.csv (training losses of every autoencoder)."""
    sources = load_sources(cfg.domains)
    numbers = dict.fromkeys(sources, cfg.train_documents)
    corpus = build_corpus(sources, cfg.tokens, cfg.vocabulary, cfg.held_out, numbers, cfg.test_documents)
    train, test = corpus.all_train(), corpus.all_test()
    documents = test + ladder_documents(cfg, corpus)
    print_rank0(f"{len(train)} training documents, {len(test)} held out, {len(documents)} with the entropy ladder")
    cache = Path(cfg.paths.cache) / "study"
    examples = write_examples(cache / f"train-{cfg.tokens}.jsonl", train)
    reference = entropy_columns(cfg, instantiate(cfg.reference), documents, "ref") if cfg.reference else DataFrame()
    controls = document_columns(cfg, documents, corpus.tokenizer)
    rows, losses = [], []
    for seed in cfg.seeds:
        models = language_models(cfg, corpus, cache, seed)
        entropies = {
            (name, side): entropy_columns(cfg, Backbone(str(folder), "float32"), documents, side)
            for name, folder in models.items()
            for side in ("enc", "dec")
        }
        for (encoder, decoder), rate, mode in itertools.product(cfg.pairs, cfg.rates, cfg.decoders):
            setting = {"pair": f"{encoder}>{decoder}", "dec_mode": mode, "rate": rate, "seed": seed}
            name, overrides = f"{encoder}-{decoder}-{mode}-{rate}x", [f"decoder.train={mode}"]
            run = runner.train(models[encoder], models[decoder], rate, overrides, examples, seed, name)
            losses.append(DataFrame([setting]).merge(training_losses(run), how="cross"))
            identity, measures = controls
            columns = [entropies[encoder, "enc"], entropies[decoder, "dec"], reference, measures]
            quality = runner.evaluate(run, documents)
            rows.append(pd.concat([identity.assign(**setting), *columns, quality], axis=1))
    return {
        "per_doc.parquet": pd.concat(rows).rename_axis("doc_id").reset_index(),
        "loss.csv": pd.concat(losses, ignore_index=True),
    }


def ladder_documents(cfg: DictConfig, corpus: Corpus) -> list[TextDocument]:
    """The first held-out documents of each domain on every rung of the entropy ladder."""
    rungs = rung_names(cfg.ladder.repeats, cfg.ladder.windows, cfg.ladder.shares)
    transformed = [
        apply_rung(document, rung, corpus.tokenizer, cfg.tokens, 0)
        for items in corpus.test.values()
        for document in items[: cfg.ladder.documents]
        for rung in rungs
    ]
    return [document for document in transformed if document is not None]


def language_models(cfg: DictConfig, corpus: Corpus, cache: Path, seed: int) -> dict[str, Path]:
    """{name: folder} of the language models of one seed."""
    folders = {}
    minor = round(cfg.minor_share * cfg.train_documents)
    for name, domains in cfg.models.items():
        documents = [
            d for domain, items in corpus.train.items() for d in (items if domain in domains else items[:minor])
        ]
        ids = token_sequences(documents, corpus.tokenizer)
        folders[name] = train_language_model(SmallModel(**cfg.model), ids, corpus.tokenizer, cache, name, seed)
        print_rank0(f"language model {name}, seed {seed}: {len(documents)} documents of {', '.join(domains)}")
    return folders


def entropy_columns(cfg: DictConfig, backbone: Any, documents: Sequence[TextDocument], suffix: str) -> DataFrame:
    """Entropies of every document under one model as columns ending in `suffix`, indexed by doc_id.

    nll_*, h_*: bits per token of the study's tokenizer; a model with another tokenizer has another number of tokens.
    bpb_*: bits per byte. nll_std_*, nll_max_*: bits, over the model's own tokens.
    """
    meter = EntropyMeter(backbone, cache=Path(cfg.paths.cache) / "study", batch_size=32)
    rows = [_entropy_row(row, cfg.tokens) for row in meter.measure(d.text for d in documents)]
    return DataFrame(rows, index=[d.doc_id for d in documents]).add_suffix(f"_{suffix}")


def _entropy_row(row: Mapping[str, float], tokens: int) -> dict[str, float]:
    return {
        "nll": row["bits_per_token"] * row["tokens"] / tokens,
        "h": row["H"] / LN2 * row["tokens"] / tokens,
        "bpb": row["bits_per_byte"],
        "nll_std": row["nll_std"] / LN2,
        "nll_max": row["nll_max"] / LN2,
    }


def document_columns(cfg: DictConfig, documents: Sequence[TextDocument], tokenizer: Any) -> tuple[DataFrame, DataFrame]:
    """(origin and length, measures that need no model) of every document, indexed by doc_id."""
    index = [d.doc_id for d in documents]
    origin = [{"domain": d.domain, "source": d.source, "transform": d.transform, "n": cfg.tokens} for d in documents]
    texts = [d.text for d in documents]
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    measures = [text_measures(text, ids) for text, ids in zip(texts, rows)]
    return DataFrame(origin, index=index), DataFrame(measures, index=index)[["bytes", "unigram_entropy", "zlib_ratio"]]


def derived_tables(cfg: DictConfig, inputs: Tables) -> Tables:
    """means.csv, corr.csv and regression.csv."""
    rows = inputs["per_doc.parquet"]
    return {
        "means.csv": group_means(rows, cfg.resamples),
        "corr.csv": correlations(rows, cfg.resamples, cfg.bound),
        "regression.csv": regressions(rows),
    }


STUDY = Study(
    name="input_entropy",
    inputs=("per_doc.parquet", "loss.csv"),
    problems=config_problems,
    measure=measure,
    tables=derived_tables,
    figures=draw_figures,
    counts=lambda measured: {"documents": measured["per_doc.parquet"]["doc_id"].nunique()},
)
