"""How large should encoder and decoder be (arXiv 2602.01778)? Quality and time of every pair of sizes at every rate.

Language models of several sizes (or vocabularies) are trained from scratch on the same sources. Every pair of them
becomes an autoencoder under one budget. Times are compared with the same decoder reading the whole text.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from pandas import DataFrame

from breviary.config.keys import validate_keys
from breviary.contract import Batch, Generation, Reader
from breviary.evaluation.loop import PHASES
from breviary.evaluation.resolve import baseline_config
from breviary.runtime.distributed import print_rank0
from breviary.runtime.timing import timed_phases
from breviary.studies.autoencoders import AutoencoderRunner, training_losses
from breviary.studies.corpus import (
    Corpus,
    Sources,
    build_corpus,
    load_sources,
    split_sources,
    token_sequences,
    write_examples,
)
from breviary.studies.documents import TextDocument, cut_documents
from breviary.studies.frame import Study, Tables, common_problems, vocabulary_problems
from breviary.studies.sizes.figures import draw_figures
from breviary.studies.sizes.tables import WHOLE_TEXT, size_table, swap_table
from breviary.studies.small_models import SmallModel, train_language_model

SIZE_KEYS = ("layers", "width", "heads", "learning_rate", "vocabulary")  # of one entry of `sizes`
Setting = tuple[str, str, int]  # encoder, decoder, rate


def config_problems(cfg: DictConfig) -> list[str]:
    """Error messages about the configuration; reads no text and no weights."""
    problems = common_problems(cfg)
    if len(cfg.sizes) < 2:
        problems.append(f"sizes={list(cfg.sizes)}: must be at least two, or there is nothing to compare")
    for name, size in cfg.sizes.items():
        unknown = sorted(set(size) - set(SIZE_KEYS))
        if unknown:
            problems.append(f"sizes.{name}: has {', '.join(unknown)}; allowed are {', '.join(SIZE_KEYS)}")
        else:
            problems += model_of_size(cfg, name).problems(f"sizes.{name}")
            problems += vocabulary_problems(size.get("vocabulary", cfg.vocabulary), f"sizes.{name}.vocabulary")
    for key, least in (("documents", 1), ("written", 1), ("rounds", 1), ("tokens", max(cfg.rates, default=1))):
        if not isinstance(cfg.timed[key], int) or cfg.timed[key] < least:
            problems.append(f"timed.{key}={cfg.timed[key]}: must be a whole number of at least {least}")
    return problems


def model_of_size(cfg: DictConfig, size: str) -> SmallModel:
    """Shape and training of the language model of one size."""
    own = {key: value for key, value in cfg.sizes[size].items() if key != "vocabulary"}
    return SmallModel(**{**cfg.model, **own})


def build_corpora(cfg: DictConfig, sources: Sources) -> dict[int, Corpus]:
    """{vocabulary: corpus in tokens of its tokenizer}, for every vocabulary of the sizes and that of the study."""
    vocabularies = {cfg.vocabulary, *(size.get("vocabulary", cfg.vocabulary) for size in cfg.sizes.values())}
    numbers = dict.fromkeys(sources, cfg.train_documents)
    return {
        vocabulary: build_corpus(sources, cfg.tokens, vocabulary, cfg.held_out, numbers, cfg.test_documents)
        for vocabulary in sorted(vocabularies)
    }


def language_models(cfg: DictConfig, corpora: Mapping[int, Corpus], seed: int) -> dict[str, Path]:
    """{size: folder}; sizes of one vocabulary learn from the same documents in the same order."""
    folders = {}
    for name, size in cfg.sizes.items():
        corpus = corpora[size.get("vocabulary", cfg.vocabulary)]
        ids = token_sequences(corpus.all_train(), corpus.tokenizer)
        home = Path(cfg.paths.cache) / "study"
        folders[name] = train_language_model(
            model_of_size(cfg, name), ids, corpus.tokenizer, home, f"size-{name}", seed
        )
        print_rank0(f"language model {name}, seed {seed}: {len(ids)} documents")
    return folders


def measure(cfg: DictConfig, runner: AutoencoderRunner) -> Tables:
    """per_doc.parquet (one row per document and setting), loss.csv (training losses), times.csv (one row per round)."""
    sources = load_sources(cfg.domains)
    corpora = build_corpora(cfg, sources)
    corpus = corpora[cfg.vocabulary]
    test, timed_documents = corpus.all_test(), long_documents(cfg, sources, corpus.tokenizer)
    file = Path(cfg.paths.cache) / "study" / f"train-{cfg.tokens}.jsonl"
    examples = write_examples(file, corpus.all_train())
    origin = [{"domain": d.domain, "source": d.source, "n": cfg.tokens} for d in test]
    origin_columns = DataFrame(origin, index=[d.doc_id for d in test])
    rows, losses = [], []
    timed_runs: dict[Setting, Path] = {}
    for seed in cfg.seeds:
        models = language_models(cfg, corpora, seed)
        for rate, encoder, decoder in itertools.product(cfg.rates, cfg.sizes, cfg.sizes):
            shapes = model_of_size(cfg, encoder), model_of_size(cfg, decoder)
            overrides = [
                f"compressor.encoder_layers={shapes[0].layers}",
                f"train.learning_rate={min(shape.learning_rate for shape in shapes)}",
            ]
            name = f"size-{encoder}-{decoder}-{rate}x"
            run = runner.train(models[encoder], models[decoder], rate, overrides, examples, seed, name)
            timed_runs.setdefault((encoder, decoder, rate), run)
            setting = {"encoder": encoder, "decoder": decoder, "rate": rate, "seed": seed}
            losses.append(DataFrame([setting]).merge(training_losses(run), how="cross"))
            rows.append(pd.concat([origin_columns.assign(**setting), runner.evaluate(run, test)], axis=1))
    return {
        "per_doc.parquet": pd.concat(rows).rename_axis("doc_id").reset_index(),
        "loss.csv": pd.concat(losses, ignore_index=True),
        "times.csv": measure_times(cfg, runner, timed_runs, timed_documents),
    }


def long_documents(cfg: DictConfig, sources: Sources, tokenizer: Any) -> list[TextDocument]:
    """The documents that times are measured on, from the held-out sources of all domains."""
    held_out = [source for items in split_sources(sources, cfg.held_out)[1].values() for source in items]
    return cut_documents("timed", held_out, tokenizer, cfg.timed.tokens, cfg.timed.documents, 0)


def measure_times(
    cfg: DictConfig, runner: AutoencoderRunner, runs: Mapping[Setting, Path], documents: Sequence[TextDocument]
) -> DataFrame:
    """One row per round and setting: milliseconds of each phase for the whole batch, and weights in use.

    Settings alternate within a round, so that a change of the machine's speed affects all of them.
    """
    readers = load_timed_readers(cfg, runner, runs, documents)
    generation = Generation(max_new_tokens=cfg.timed.written, min_new_tokens=cfg.timed.written, stop=())
    rows = []
    for number in range(1 + cfg.timed.rounds):
        for (encoder, decoder, rate), (reader, batch) in readers.items():
            with torch.no_grad(), timed_phases() as seconds:
                reader.decode(batch, generation)
            if number == 0:  # warm-up
                continue
            rows.append(
                {
                    "encoder": encoder,
                    "decoder": decoder,
                    "rate": rate,
                    "round": number,
                    "weights": sum(p.numel() for p in reader.parameters()),
                    **{f"{phase}_ms": 1000 * seconds[phase] for phase in PHASES},
                }
            )
    return DataFrame(rows)


def load_timed_readers(
    cfg: DictConfig, runner: AutoencoderRunner, runs: Mapping[Setting, Path], documents: Sequence[TextDocument]
) -> dict[Setting, tuple[Reader, Batch]]:
    """{setting: (reader, batch of all documents)}, for the runs and for each decoder reading the whole text."""
    session = runner.session
    readers: dict[Setting, tuple[Reader, Batch]] = {}
    for (encoder, decoder, rate), run in runs.items():
        run_cfg, reader, items = runner.load(run, documents, cfg.timed.documents)
        batch = session.text.collator(reader.tokenizer)([items[i] for i in range(len(items))])
        batch = batch.to(next(reader.parameters()).device)
        readers[encoder, decoder, rate] = reader.eval(), batch
        whole_text = ("", decoder, WHOLE_TEXT)
        if whole_text not in readers:
            other = validate_keys(baseline_config(run_cfg, "full_context"))[0]
            readers[whole_text] = session.load_reader(other).eval(), batch
    return readers


def derived_tables(cfg: DictConfig, inputs: Tables) -> Tables:
    """sizes.csv and swaps.csv."""
    rows, times = inputs["per_doc.parquet"], inputs["times.csv"].fillna({"encoder": ""})
    return {
        "sizes.csv": size_table(rows, times, cfg.timed.written, cfg.resamples),
        "swaps.csv": swap_table(rows, list(cfg.sizes), cfg.resamples),
    }


STUDY = Study(
    name="sizes",
    inputs=("per_doc.parquet", "times.csv"),
    problems=config_problems,
    measure=measure,
    tables=derived_tables,
    figures=draw_figures,
    counts=lambda measured: {"documents": measured["per_doc.parquet"]["doc_id"].nunique()},
)
