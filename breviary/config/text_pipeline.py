"""The interface to `data`, which breviary never imports: entry points pass in data/text_pipeline.py's TEXT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from breviary.contract import Batch, Example


class Scorer(Protocol):
    """Scores of the answers of one data set: what is always computed, and what the data set's YAML names."""

    names: tuple[str, ...]  # that tables show, the first one is the headline
    further: Mapping[str, Any]  # {name: version} of those that are not always computed
    aggregates: Mapping[str, Sequence[str]]  # {name: scores}: geometric means of mean scores
    likelihood: bool  # the reader measures the likelihood of each choice, for `of_choices`
    perplexity: bool  # the reader measures the likelihood of the answer without its end token

    def __call__(self, prediction: str, references: Sequence[str], example: Example | None = None) -> dict[str, float]:
        """{metric: value} of one answer, the best over the references."""

    def of_choices(self, nll: Sequence[float], example: Example) -> dict[str, float]:
        """Scores of the likelihood of each choice; nll: nats, end token left out."""

    def rescored(self, row: Mapping[str, Any], example: Example) -> dict[str, float] | None:
        """Every score of a row of predictions.jsonl; None where the reader has to measure a likelihood."""

    def example_problems(self, examples: Sequence[Example]) -> list[str]:
        """An error message where examples lack a field that a metric reads."""

    def record(self) -> dict[str, Any]:
        """{"names", "details", "aggregates"}: the metrics to show; rule, version and library of each; `aggregates`."""


class TextPipeline(Protocol):
    """Prompts, tokenising, collating and scoring."""

    metrics_version: int  # increased when a score of any answer changes: results of another version are not used

    def prompt(self, settings: Mapping[str, Any]) -> Any:
        """The prompt of configuration section `prompt`. Raises ValueError for wrong settings."""

    def store(self, source: Any, split: str, cache_dir: str | None) -> Sequence[Example]:
        """The examples of a data set's split on disk, for all processes; slices of a part of them are in memory."""

    def tokenise(
        self,
        examples: Sequence[Example],
        tokenizer: Any,
        prompt: Any,
        max_context_tokens: int | None,
        cache_dir: str | None,
        truncation: str,
    ) -> Any:
        """Examples as tokens: a sequence of items for `collator`, with the attributes of data.tokenised.Tokenised."""

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        """The function that turns tokenised items into a batch, padded for this tokenizer."""

    def scores(self, prediction: str, references: Sequence[str], example: Example | None = None) -> dict[str, float]:
        """{metric: value in [0, 1]} of one answer, the best over the references: what is always computed."""

    def scorer(self, names: Sequence[str] | None) -> Scorer:
        """The scores of a data set that names these metrics; None = `scores`. Raises ValueError for wrong names."""

    def scoring(self, rows: Sequence[Mapping[str, Any]], scorer: Scorer) -> dict[str, Any]:
        """How predictions were scored, for results.json.

        metrics_version, normalisation: {rule: examples}, and scoring: `Scorer.record`
        """


def tokenised_folder(cfg: DictConfig) -> str:
    """Folder of stored examples and tokens; configurations of earlier versions have paths.cache only."""
    return str(cfg.paths.get("tokenised") or Path(cfg.paths.cache) / "tokenised")
