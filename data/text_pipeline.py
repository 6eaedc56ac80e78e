"""From text to batches: `DataPipeline` for data sets (training, evaluation), `TextBatches` for plain texts (Python)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from breviary.contract import Batch, Example
from breviary.runtime.markup import tokenise
from data.collate import Collator
from data.metrics import METRICS_VERSION, Scorer, rules, scores
from data.prompts import Prompt
from data.store.examples import StoredExamples, store_split
from data.tokenised import Tokenised, tokenise_split


class DataPipeline:
    """Implements the protocol `TextPipeline`. Entry points pass an instance to breviary, which never imports data."""

    metrics_version = METRICS_VERSION

    def prompt(self, settings: Mapping[str, Any]) -> Prompt:
        """The prompt of configuration section `prompt`. Raises ValueError for wrong settings."""
        return Prompt(**settings)

    def store(self, source: Any, split: str, cache_dir: str | None) -> StoredExamples:
        """As `store_split`."""
        return store_split(source, split, cache_dir)

    def tokenise(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        max_context_tokens: int | None,
        cache_dir: str | None,
        truncation: str = "middle",
    ) -> Tokenised:
        """As `tokenise_split`."""
        return tokenise_split(examples, tokenizer, prompt, max_context_tokens, cache_dir, truncation)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[dict[str, Any]]], Batch]:
        """The function that turns tokenised items into a batch, padded for this tokenizer."""
        return Collator(0)  # any id serves, as masks come from lengths; a tokenizer's own may have no embedding

    def scores(self, prediction: str, references: Sequence[str], example: Example | None = None) -> dict[str, float]:
        """As `data.metrics.scores`."""
        return scores(prediction, references, example)

    def scorer(self, names: Sequence[str] | None) -> Scorer:
        """As `data.metrics.Scorer`."""
        return Scorer(names)

    def scoring(self, rows: Sequence[Mapping[str, Any]], scorer: Any) -> dict[str, Any]:
        """How predictions were scored: metrics_version, normalisation: {rule of data.metrics: examples}, and scoring.

        rows  with "prediction" and "references"; an example with references of several rules counts for each
        """
        used = Counter(rule for row in rows for rule in rules(row["prediction"], row["references"]))
        return {
            "metrics_version": METRICS_VERSION,
            "normalisation": dict(sorted(used.items())),
            "scoring": scorer.record(),
        }


TEXT = DataPipeline()


class TextBatches:
    """Turns contexts and questions into batches with a run's prefix, template and tokenizer.

    tokenizer  the backbone's
    prompt     arguments of Prompt
    Raises: ValueError as Prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: dict[str, Any]) -> None:
        self.tokenizer, self.prompt = tokenizer, Prompt(**prompt)
        self._collate = Collator(0)

    def __call__(self, contexts: Sequence[str], questions: Sequence[str]) -> Batch:
        """A batch with one row per (context, question); either text may be empty. Its answers are empty.

        An example's id, on which sampling depends, is the question: equal for a text in a batch, alone, or encoded.
        """
        assert len(contexts) == len(questions), (len(contexts), len(questions))
        examples = [Example(question, context, question, ("",)) for context, question in zip(contexts, questions)]
        items = [{**self.prompt.tokenise(example, self.tokenizer), "example": example} for example in examples]
        return self._collate(items)

    def of_parts(self, splits: Sequence[Any], answers: Sequence[str], max_context_tokens: int | None = None) -> Batch:
        """A batch of prompts that are given whole, without this object's own prompt.

        splits   with the texts before, context, after, question. before begins with BOS, where the tokenizer has one
                 and the text does not begin with it; before and after may hold special tokens
        answers  the texts to score, as they are, without an end token
        max_context_tokens  longer contexts are cut in the middle; None = no limit
        """
        bos = self.tokenizer.bos_token_id if self.prompt.bos else None
        items = []
        for split, answer in zip(splits, answers, strict=True):
            prefix = tokenise(self.tokenizer, split.before)
            context = tokenise(self.tokenizer, split.context, plain=True)
            if max_context_tokens is not None and len(context) > max_context_tokens:
                first = (max_context_tokens + 1) // 2
                context = context[:first] + context[len(context) - (max_context_tokens - first) :]
            items.append(
                {
                    "prefix": prefix if bos is None or prefix[:1] == [bos] else [bos, *prefix],
                    "context": context,
                    "query": tokenise(self.tokenizer, split.question, plain=True),
                    "prompt": tokenise(self.tokenizer, split.after),
                    "answer": tokenise(self.tokenizer, answer, plain=True),
                    "evidence": None,
                    "starts": None,
                    "example": Example(split.question, split.context, split.question, (answer,)),
                }
            )
        return self._collate(items)
