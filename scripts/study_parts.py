"""What the two studies share: text with a side of the split, autoencoders trained by train.py, their scores, tables.

No entry point of its own; see study_input_entropy.py and study_data_gap.py.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

import eval as evaluating
import train as training
from breviary.config.build import build_backbone
from breviary.config.errors import ConfigError, collect_errors
from breviary.contract import Example, Generation, Reader
from breviary.evaluation.loop import evaluate
from breviary.runs.checkpoints import best_checkpoint
from breviary.runs.folders import FINISHED, config_hash, load_config
from breviary.runtime.distributed import rank
from breviary.runtime.files import write_json, write_text
from breviary.studies.documents import TextDocument, cut_documents, is_held_out
from breviary.studies.small_models import SmallModel, train_tokenizer
from data.collate import Collator
from data.metrics import scores
from data.text_sources import Source

# Quality of a reconstruction, larger is better; each is a column of the tables.
QUALITIES = (
    "neg_ce",
    "gain",
    "normalised_gain",
    "accuracy",
    "free_accuracy",
    "prefix_em",
    "bleu",
    "rouge_l",
    "edit_similarity",
)
BESIDE = ("ce", "ce_unconditional", "bits_per_byte", "end_rate", "sequence_em", "memory_slots")  # told as well
TASK = "Restate the text."
TOKENIZER_CHARACTERS = 400_000  # of each domain that the tokenizer is trained on
Sources = dict[str, list[Source]]
Documents = dict[str, list[TextDocument]]


def say(text: str) -> None:
    """Prints on rank 0."""
    if rank() == 0:
        print(text, flush=True)


# ------------------------------------------------------------------ checks


def common_problems(cfg: DictConfig) -> list[str]:
    """What is wrong with keys that both studies have, a sentence each."""
    found = SmallModel(**cfg.model).problems("model")
    for key in ("tokens", "resamples"):
        if not isinstance(cfg[key], int) or cfg[key] < 1:
            example = {"tokens": 64, "resamples": 10000}[key]
            found.append(f"{key}={cfg[key]}: must be a whole number of at least 1, e.g. {example}")
    for rate in cfg.rates if "rates" in cfg else [cfg.rate]:
        if not isinstance(rate, int) or rate < 1 or rate > cfg.tokens:
            found.append(
                f"rate {rate}: documents of tokens={cfg.tokens} would be shorter than one group; give whole "
                f"numbers from 1 to {cfg.tokens}, e.g. 4"
            )
    found += vocabulary_problems(cfg.vocabulary, "vocabulary")
    if not cfg.seeds:
        found.append("seeds is empty; give at least one, e.g. [0]")
    if not 0 < cfg.held_out < 1:
        found.append(f"held_out={cfg.held_out}: a share of the sources above 0 and below 1, e.g. 0.4")
    return found


def vocabulary_problems(size: Any, key: str) -> list[str]:
    """What is wrong with a vocabulary's size, `key` in the configuration."""
    if isinstance(size, int) and size >= 258:
        return []
    return [f"{key}={size}: must be a whole number of at least 258 (all bytes and two special tokens), e.g. 1024"]


def sources_of(texts: DictConfig, problems: list[str]) -> dict[str, list[Source]]:
    """{name: its sources}; what is wrong goes to `problems`, each with the key's name. A name of null is left out."""
    found = {}
    for name, settings in texts.items():
        if settings is None:
            continue
        told: list[str] = []
        made = collect_errors(told, instantiate, settings)
        told += (collect_errors(told, made.problems) or []) if made is not None else []
        if not told:
            found[name] = collect_errors(told, made.sources) or []
            wrong = [source.name for source in found[name] if not source.text.strip()]
            found[name] = [source for source in found[name] if source.text.strip()]
            if wrong:
                say(f"{name}: {len(wrong)} sources without text are left out, e.g. {wrong[0]}")
            if not found[name] and not told:
                told.append("no source has any text")
        problems += [f"{name}: {problem}" for problem in told]
    return found


def both_sides(sources: Mapping[str, Sequence[Source]], share: float) -> tuple[Sources, Sources]:
    """(for training, held out): sources by name, `share` of them held out."""
    sides: tuple[Sources, Sources] = ({}, {})
    for name, items in sources.items():
        for side in (0, 1):
            sides[side][name] = [source for source in items if is_held_out(source.name, share) == bool(side)]
    return sides


# ------------------------------------------------------------------ tokens and models


def documents_of(cfg: DictConfig, sources: Sources) -> tuple[Any, Documents, Documents]:
    """(tokenizer, documents to learn from, documents held out), by domain; what is lacking of any is told at once."""
    learned, kept = both_sides(sources, cfg.held_out)
    pieces = [text[:TOKENIZER_CHARACTERS] for text in ("\n".join(s.text for s in items) for items in learned.values())]
    tokenizer = train_tokenizer(pieces, cfg.vocabulary)
    told: list[str] = []
    train, test = (
        {
            name: collect_errors(told, cut_documents, name, items, tokenizer, cfg.tokens, number, 0)
            for name, items in side.items()
        }
        for side, number in ((learned, cfg.train_documents), (kept, cfg.test_documents))
    )
    refuse(told)
    return tokenizer, train, test


def sequences(documents: Sequence[TextDocument], tokenizer: Any) -> torch.Tensor:
    """(N, n + 2) int64: each document between BOS and the end token."""
    rows = tokenizer([d.text for d in documents], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return torch.tensor([[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows])


def write_documents(file: Path, documents: Iterable[TextDocument]) -> Path:
    """The documents as JSONL of our format, to be written down again."""
    rows = [{"id": d.doc_id, "context": d.text, "question": TASK, "answers": [d.text]} for d in documents]
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


# ------------------------------------------------------------------ autoencoders


def autoencoder(
    cfg: DictConfig, encoder: Path, decoder: Path, rate: int, words: Sequence[str], train: Path, seed: int, name: str
) -> Path:
    """The run folder of an autoencoder of two small models, trained by train.py; a finished one of the same is taken.

    cfg.autoencoder holds words of train.py's command line, `words` further ones.
    """
    n = cfg.tokens
    asked = [
        "dataset=jsonl",
        "objective=reconstruct",
        f"dataset.train={train}",
        "backbone=smollm2_135m",
        f"backbone.path={decoder}",
        "backbone.dtype=float32",
        f"compressor.encoder={encoder}",
        f"compressor.ratio={rate}",
        "train.eval_examples=0",
        "prompt.template='{question}'",
        "prompt.answer_template='{answer}'",
        f"generation.max_new_tokens={n + 16}",
        "generation.stop=[]",
        f"seed={seed}",
        f"name={name}",
        f"paths.outputs={cfg.paths.cache}/study/runs",
        f"paths.cache={cfg.paths.cache}",
        *cfg.autoencoder,
        *words,
    ]
    run = compose("train", asked)  # Hydra has been started on our folder of configurations by the study's own main
    run.reader = name
    wanted = config_hash(run)
    for folder in sorted((Path(run.paths.outputs) / name).glob("*_*")):
        if (folder / FINISHED).exists() and config_hash(load_config(folder)) == wanted:
            return folder
    return training.train(run)


def losses(run: Path) -> list[dict[str, float]]:
    """[{"step", "loss"}] as logged, nats a token."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{"step": row["step"], "loss": row["loss"]} for row in rows if "loss" in row]


def opened(run: Path, documents: Sequence[TextDocument], batch_size: int) -> tuple[DictConfig, Reader, Any]:
    """A run's configuration, its reader, and the documents as it reads them."""
    cfg = load_config(run)
    with open_dict(cfg):
        cfg.split, cfg.eval_batch_size = "test", batch_size  # what eval.py's own keys say
    backbone = build_backbone(cfg)
    items = evaluating.tokenised(cfg, backbone, [Example(d.doc_id, d.text, TASK, (d.text,)) for d in documents])
    return cfg, evaluating.loaded(cfg, backbone, best_checkpoint(run)), items


def restored(
    run: Path, documents: Sequence[TextDocument], batch_size: int, known: dict[Any, Any]
) -> dict[str, dict[str, float]]:
    """{doc_id: every quality, ce, ce_unconditional, bits_per_byte, end_rate} of a run's reader on documents.

    `known` keeps what decoders without memory spend, as in eval.without_memory.
    """
    cfg, reader, items = opened(run, documents, batch_size)
    unconditional = evaluating.without_memory(cfg, build_backbone(cfg), items, known)
    collate = Collator(reader.tokenizer.pad_token_id or 0)
    return {
        row["id"]: qualities(row)
        for rows in evaluate(
            reader, items, collate, scores, Generation(**cfg.generation), batch_size, unconditional=unconditional
        )
        for row in rows
    }


def qualities(row: Mapping[str, Any]) -> dict[str, float]:
    """One prediction's columns: see data.restoration.Restoration for what each means."""
    ratios = {name: top / bottom for name, (top, bottom) in row["ratios"].items() if bottom}
    found = {
        "neg_ce": -ratios["ce"],
        "ce": ratios["ce"],
        "memory_slots": row["memory_slots"],
        **row["scores"],
        **ratios,
    }
    return {name: found[name] for name in (*QUALITIES, *BESIDE)}


# ------------------------------------------------------------------ tables


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys; numbers with 6 digits, what is not a number left empty."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: shown(value) for key, value in row.items()} for row in rows)


def mean_by_document(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """{doc_id: the metric's mean over the rows of this document}: over seeds, where rows are of one setting."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["doc_id"], []).append(row[metric])
    return {doc: math.fsum(own) / len(own) for doc, own in values.items()}


def shown(value: Any) -> Any:
    """A cell."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return value


def read_csv(file: Path) -> list[dict[str, Any]]:
    """As written: numbers as numbers, empty cells as None."""

    def parsed(text: str) -> Any:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    with open(file, newline="", encoding="utf-8") as stream:
        return [{key: parsed(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def write_parquet(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a document and setting."""
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(str(file))


def read_parquet(file: Path) -> list[dict[str, Any]]:
    """The rows of `write_parquet`."""
    return datasets.Dataset.from_parquet(str(file), keep_in_memory=True).to_list()


def write_provenance(folder: Path, name: str, cfg: DictConfig, started: dict[str, Any], **more: Any) -> None:
    """NAME.json: the resolved configuration, and `started`, breviary.runs.environment.environment at the start."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    plain.pop("paths")  # of one machine
    write_json(folder / f"{name}.json", {"config": relative(plain, cfg), "environment": started, **more})


def relative(value: Any, cfg: DictConfig) -> Any:
    """The same with the machine's folders written as the keys that they come from."""
    if isinstance(value, dict):
        return {key: relative(item, cfg) for key, item in value.items()}
    if isinstance(value, list):
        return [relative(item, cfg) for item in value]
    if isinstance(value, str):
        for key in ("data", "cache", "outputs"):
            value = value.replace(str(cfg.paths[key]), f"${{paths.{key}}}")
    return value


def refuse(problems: Sequence[str]) -> None:
    """Raises Problems where there are any."""
    if problems:
        raise ConfigError(problems)
