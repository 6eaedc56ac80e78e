"""How large should encoder and decoder be? Rate, quality and time for every pair of sizes (arXiv 2602.01778).

    python scripts/study_sizes.py [key=value ...]          configs/study/sizes.yaml has the keys
    python scripts/study_sizes.py tables=true              tables and figure again, from per_doc.parquet and times.csv

Language models of several sizes (or vocabularies) are trained from scratch on the same sources; every pair of them becomes
an autoencoder at every rate, under one budget. OUTPUT/per_doc.parquet has a row a document and setting, times.csv a row a
round and setting; sizes.csv, swaps.csv and pareto.png are made of them. Time is told against the same decoder's that
reads the whole text.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import itertools
import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_cli, which tells them in a sentence

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

import eval as evaluating
from breviary.config.errors import collect_errors, report_user_errors, run_cli
from breviary.config.keys import known_keys, validate_keys
from breviary.contract import Batch, Generation, Reader
from breviary.runs.environment import environment
from breviary.runtime.timing import timed_phases
from breviary.studies.documents import TextDocument, cut_documents
from breviary.studies.small_models import SmallModel, trained_model
from data.collate import Collator
from scripts import study_parts as parts
from scripts.size_tables import SETTING, pareto, size_table, swaps

NAME = "study/sizes"
PHASES = ("encode", "compress", "prefill", "decode")
OWN = ("layers", "width", "heads", "learning_rate", "vocabulary")  # what a size may say of its own
WHOLE = 0  # the rate of the decoder that reads the whole text


def problems_of(cfg: DictConfig) -> list[str]:
    """What is wrong with the configuration, a sentence each; reads no text and no weights."""
    found = parts.common_problems(cfg)
    if len(cfg.sizes) < 2:
        found.append(f"sizes={list(cfg.sizes)}: must be at least two, or there is nothing to compare")
    for name, shape in cfg.sizes.items():
        unknown = sorted(set(shape) - set(OWN))
        if unknown:
            found.append(f"sizes.{name}: has {', '.join(unknown)}; allowed are {', '.join(OWN)}")
        else:
            found += shape_of(cfg, name).problems(f"sizes.{name}")
            found += parts.vocabulary_problems(shape.get("vocabulary", cfg.vocabulary), f"sizes.{name}.vocabulary")
    for key, least in (("documents", 1), ("written", 1), ("rounds", 1), ("tokens", max(cfg.rates, default=1))):
        if not isinstance(cfg.timed[key], int) or cfg.timed[key] < least:
            found.append(f"timed.{key}={cfg.timed[key]}: must be a whole number of at least {least}")
    return found


def shape_of(cfg: DictConfig, size: str) -> SmallModel:
    """Shape and training of a size's language model."""
    return SmallModel(**{**cfg.model, **{key: value for key, value in cfg.sizes[size].items() if key != "vocabulary"}})


def texts_of(cfg: DictConfig, sources: parts.Sources) -> dict[int, tuple[Any, parts.Documents, parts.Documents]]:
    """{vocabulary: (its tokenizer, documents to learn from, documents held out)}, all of tokens of that tokenizer."""
    wanted = {cfg.vocabulary, *(shape.get("vocabulary", cfg.vocabulary) for shape in cfg.sizes.values())}
    return {
        number: parts.documents_of(OmegaConf.merge(cfg, {"vocabulary": number}), sources) for number in sorted(wanted)
    }


def language_models(cfg: DictConfig, texts: dict[int, Any], home: Path, seed: int) -> dict[str, Path]:
    """{size: folder}; sizes of one tokenizer learn from the same documents in the same order."""
    found = {}
    for name, shape in cfg.sizes.items():
        tokenizer, train, _ = texts[shape.get("vocabulary", cfg.vocabulary)]
        ids = parts.sequences([d for items in train.values() for d in items], tokenizer)
        found[name] = trained_model(shape_of(cfg, name), ids, tokenizer, home, f"size-{name}", seed)
        parts.say(f"language model {name}, seed {seed}: {len(ids)} documents")
    return found


def measured(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows a document and setting, rows of the loss curves, times a round and setting)."""
    told: list[str] = []
    sources = parts.sources_of(cfg.domains, told)
    parts.refuse(told)
    texts = texts_of(cfg, sources)
    tokenizer, train, held = texts[cfg.vocabulary]
    test = [d for items in held.values() for d in items]
    kept = [source for items in parts.both_sides(sources, cfg.held_out)[1].values() for source in items]
    long = collect_errors(told, cut_documents, "timed", kept, tokenizer, cfg.timed.tokens, cfg.timed.documents, 0)
    parts.refuse(told)
    home = Path(cfg.paths.cache) / "study"
    file = parts.write_documents(home / f"train-{cfg.tokens}.jsonl", [d for items in train.values() for d in items])
    rows, curves, known = [], [], {}
    runs: dict[tuple[str, str, int], Path] = {}
    for seed in cfg.seeds:
        models = language_models(cfg, texts, home, seed)
        for rate, encoder, decoder in itertools.product(cfg.rates, cfg.sizes, cfg.sizes):
            own, other = shape_of(cfg, encoder), shape_of(cfg, decoder)
            words = [
                f"compressor.encoder_layers={own.layers}",
                f"train.learning_rate={min(own.learning_rate, other.learning_rate)}",
            ]
            run = parts.autoencoder(
                cfg, models[encoder], models[decoder], rate, words, file, seed, f"size-{encoder}-{decoder}-{rate}x"
            )
            runs.setdefault((encoder, decoder, rate), run)
            setting = dict(zip(SETTING, (encoder, decoder, rate, seed)))
            curves += [{**setting, **row} for row in parts.losses(run)]
            found = parts.restored(run, test, cfg.eval_batch_size, known)
            rows += [
                {
                    "doc_id": d.doc_id,
                    "domain": d.domain,
                    "source": d.source,
                    "n": cfg.tokens,
                    **setting,
                    **found[d.doc_id],
                }
                for d in test
            ]
    return rows, curves, timed(cfg, runs, long)


def timed(
    cfg: DictConfig, runs: dict[tuple[str, str, int], Path], long: Sequence[TextDocument]
) -> list[dict[str, Any]]:
    """A row a round and setting of the first seed: milliseconds of each phase for the whole batch, weights in use.

    All settings are timed in turn, round by round, so that a machine whose speed changes is slow for all of them.
    """
    readers: dict[tuple[str, str, int], tuple[Reader, Batch]] = {}
    for key, run in runs.items():
        settings, reader, items = parts.opened(run, long, cfg.timed.documents)
        batch = Collator(reader.tokenizer.pad_token_id or 0)([items[i] for i in range(len(items))])
        readers[key] = reader.eval(), batch.to(next(reader.parameters()).device)
        whole = ("", key[1], WHOLE)
        if whole not in readers:
            other = validate_keys(evaluating.untouched(settings, "full_context"))[0]
            readers[whole] = evaluating.loaded(other, evaluating.build_backbone(other), None).eval(), readers[key][1]
    written = Generation(max_new_tokens=cfg.timed.written, min_new_tokens=cfg.timed.written, stop=())
    rows = []
    for number in range(1 + cfg.timed.rounds):
        for (encoder, decoder, rate), (reader, batch) in readers.items():
            with torch.no_grad(), timed_phases() as seconds:
                reader.decode(batch, written)
            if number:  # the first is for warming up
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
    return rows


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=NAME)
@report_user_errors
def main(cfg: DictConfig) -> None:
    """Measures, then writes tables and figure."""
    folder = Path(cfg.output)
    if not cfg.tables:
        parts.refuse(problems_of(cfg))
        started = environment()
        rows, curves, times = measured(cfg)
        parts.write_parquet(folder / "per_doc.parquet", rows)
        parts.write_csv(folder / "loss.csv", curves)
        parts.write_csv(folder / "times.csv", times)
        parts.write_provenance(folder, "sizes", cfg, started, documents=len({row["doc_id"] for row in rows}))
    rows, times = parts.read_parquet(folder / "per_doc.parquet"), parts.read_csv(folder / "times.csv")
    table = size_table(rows, times, cfg.timed.written, cfg.resamples)
    parts.write_csv(folder / "sizes.csv", table)
    parts.write_csv(folder / "swaps.csv", list(swaps(rows, list(cfg.sizes), cfg.resamples)))
    pareto(folder, table)
    parts.say(f"{folder}: per_doc.parquet, times.csv, sizes.csv, swaps.csv, pareto.png")


def config_keys() -> list[str]:
    """Every key that the command line could have meant."""
    return known_keys(NAME)


if __name__ == "__main__":
    run_cli(main, config_keys)
