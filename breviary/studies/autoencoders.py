"""Autoencoders of two small models: trained like any run, then evaluated on how well they reconstruct documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from pandas import DataFrame

from breviary.config.compose import compose_config
from breviary.contract import Example, Generation, Reader
from breviary.evaluation.loop import evaluate
from breviary.evaluation.session import EvaluationSession
from breviary.runs.checkpoints import best_checkpoint
from breviary.runs.folders import FINISHED, config_hash, load_config
from breviary.studies.corpus import TASK
from breviary.studies.documents import TextDocument

# Qualities of a reconstruction, larger is better; each is a column of the tables.
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
FURTHER_COLUMNS = ("ce", "ce_unconditional", "bits_per_byte", "end_rate", "sequence_em", "memory_slots")


class AutoencoderRunner:
    """Trains and evaluates the autoencoders of one study.

    cfg      the study's configuration: tokens, autoencoder (overrides of every run), eval_batch_size, paths
    train    trains one run of a composed configuration and returns its folder (train.train)
    session  evaluation session; its cache holds the unconditional loss of each decoder
    """

    def __init__(self, cfg: DictConfig, train: Callable[[DictConfig], Path], session: EvaluationSession):
        self.cfg, self.session = cfg, session
        self._train = train

    def train(
        self, encoder: Path, decoder: Path, rate: int, overrides: Sequence[str], examples: Path, seed: int, name: str
    ) -> Path:
        """The run folder of an autoencoder, newly trained, or finished earlier with an equal configuration.

        encoder, decoder  folders of small models
        rate              context tokens per slot
        overrides         of configs/train.yaml, after those of cfg.autoencoder
        examples          training examples, JSONL
        """
        paths = self.cfg.paths
        run = compose_config(
            "train",
            [
                "dataset=jsonl",
                "objective=reconstruct",
                f"dataset.train={examples}",
                "backbone=smollm2_135m",
                f"backbone.path={decoder}",
                "backbone.dtype=float32",
                f"compressor.encoder={encoder}",
                f"compressor.ratio={rate}",
                "train.eval_examples=0",
                "prompt.template='{question}'",
                "prompt.answer_template='{answer}'",
                f"generation.max_new_tokens={self.cfg.tokens + 16}",
                "generation.stop=[]",
                f"seed={seed}",
                f"name={name}",
                f"paths.outputs={paths.cache}/study/runs",
                f"paths.cache={paths.cache}",
                *self.cfg.autoencoder,
                *overrides,
            ],
        )
        run.reader = name
        wanted = config_hash(run)
        for folder in sorted((Path(run.paths.outputs) / name).glob("*_*")):
            if (folder / FINISHED).exists() and config_hash(load_config(folder)) == wanted:
                return folder
        return self._train(run)

    def load(self, run: Path, documents: Sequence[TextDocument], batch_size: int) -> tuple[DictConfig, Reader, Any]:
        """(configuration, reader, tokenised documents) of a run."""
        cfg = load_config(run)
        with open_dict(cfg):
            cfg.split, cfg.eval_batch_size = "test", batch_size  # keys of configs/eval.yaml
        items = self.session.tokenise(cfg, [Example(d.doc_id, d.text, TASK, (d.text,)) for d in documents])
        return cfg, self.session.load_reader(cfg, best_checkpoint(run)), items

    def evaluate(self, run: Path, documents: Sequence[TextDocument]) -> DataFrame:
        """QUALITIES and FURTHER_COLUMNS of every document, indexed by doc_id in the order of `documents`."""
        batch_size = self.cfg.eval_batch_size
        cfg, reader, items = self.load(run, documents, batch_size)
        predictions = evaluate(
            reader,
            items,
            self.session.text.collator(reader.tokenizer),
            self.session.text.scores,
            Generation(**cfg.generation),
            batch_size,
            unconditional=self.session.unconditional_nll(cfg, items),
        )
        rows = [{"doc_id": row["id"], **quality_columns(row)} for batch in predictions for row in batch]
        return DataFrame(rows).set_index("doc_id").loc[[d.doc_id for d in documents]]


def training_losses(run: Path) -> DataFrame:
    """Columns step and loss as logged, nats per token."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return DataFrame([{"step": row["step"], "loss": row["loss"]} for row in rows if "loss" in row])


def quality_columns(row: Mapping[str, Any]) -> dict[str, float]:
    """QUALITIES and FURTHER_COLUMNS of one prediction: its scores, and its ratios of sums as numbers."""
    ratios = {name: numerator / denominator for name, (numerator, denominator) in row["ratios"].items() if denominator}
    values = {"neg_ce": -ratios["ce"], "memory_slots": row["memory_slots"], **row["scores"], **ratios}
    return {name: values[name] for name in (*QUALITIES, *FURTHER_COLUMNS)}
