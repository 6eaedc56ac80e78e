"""A split as token ids, cut to a length and kept on disk under a hash of all that made it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from breviary.contract import Example
from data.prompts import Prompt

LAYOUT = 2  # counted up when what is stored changes, so that older folders are not read
TRUNCATIONS = ("head", "tail", "middle")
_IDS = datasets.List(datasets.Value("int32"))
_FEATURES = datasets.Features(
    {
        "prefix": _IDS,
        "context": _IDS,
        "query": _IDS,
        "prompt": _IDS,
        "answer": _IDS,
        "evidence": datasets.List(datasets.Value("bool")),
        "starts": _IDS,
        "ends": _IDS,
        "length": datasets.Value("int32"),  # context tokens kept
        "cut": datasets.Value("bool"),
        "gold_lost": datasets.Value("bool"),
    }
)


class Tokenised(torch.utils.data.Dataset):
    """Tokenised examples.

    data_hash  sha256 of the examples, before any cutting
    lengths    context tokens of each example, as kept
    others     tokens of each example beside its context: prefix, the longer of question and prompt, answer
    answers    tokens of its answer among them
    cut        whether each example's context was cut; truncated: how many were
    gold_lost  examples that lost a whole gold passage by it, or, with no gold marks, every occurrence of an answer
    """

    def __init__(self, examples: Sequence[Example], rows: datasets.Dataset, data_hash: str) -> None:
        assert len(examples) == len(rows), (len(examples), len(rows))
        self.examples = examples
        self.data_hash = data_hash
        self.lengths: list[int] = list(rows["length"])
        self.cut: list[bool] = list(rows["cut"])
        self.truncated = sum(self.cut)
        self.gold_lost = sum(rows["gold_lost"])
        self.others: list[int] = [
            len(prefix) + max(len(query), len(prompt)) + len(answer)
            for prefix, query, prompt, answer in zip(rows["prefix"], rows["query"], rows["prompt"], rows["answer"])
        ]
        self.answers: list[int] = [len(answer) for answer in rows["answer"]]
        self._rows = rows.remove_columns(["length", "cut", "gold_lost"])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pieces of `Prompt.tokenise` as lists, and `example`."""
        return {**self._rows[index], "example": self.examples[index]}

    def report(self) -> str:
        """One line: how many examples, how long, how many were cut and lost what they ask for."""
        mean = sum(self.lengths) / max(1, len(self.lengths))
        return (
            f"{len(self)} examples, {mean:.0f} context tokens on average, {max(self.lengths, default=0)} at most; "
            f"{self.truncated} contexts cut, {self.gold_lost} lost their gold; data {self.data_hash[:12]}"
        )


def tokenise_split(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    max_context_tokens: int | None,
    cache_dir: str | None,
    truncation: str = "middle",
) -> Tokenised:
    """Tokenises `examples`, or reads what an earlier call with equal arguments kept in `cache_dir`.

    max_context_tokens  contexts are cut to so many; None = never. Questions and answers are never cut.
    truncation          what is kept: head = the first tokens, tail = the last, middle = both ends (half each)
    cache_dir           None = nothing is kept. Several processes may call at once: each writes a folder of its own,
                        the first renames it into place.
    Raises ValueError for a bad limit or truncation, and as `Prompt.tokenise`.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; allowed: {', '.join(TRUNCATIONS)}")
    if max_context_tokens is not None and max_context_tokens < 1:
        raise ValueError(
            f"max_context_tokens is {max_context_tokens}; it must be 1 or more, or null for no limit, "
            "for example max_context_tokens=2048"
        )
    data_hash = examples_hash(examples)
    made_of = [
        LAYOUT,
        data_hash,
        tokenizer_hash(tokenizer),
        asdict(prompt),
        max_context_tokens,
        truncation if max_context_tokens is not None else None,
    ]
    key = _sha256(made_of)
    folder = None if cache_dir is None else Path(cache_dir) / f"tokenised-{key[:32]}"
    if folder is not None and folder.is_dir():
        return Tokenised(examples, datasets.load_from_disk(str(folder)), data_hash)

    def tokenise_row(index: int) -> dict[str, Any]:
        return _cut(
            prompt.tokenise(examples[index], tokenizer), examples[index], tokenizer, max_context_tokens, truncation
        )

    numbers = datasets.Dataset.from_dict({"index": list(range(len(examples)))})
    rows = numbers.map(
        tokenise_row,
        input_columns="index",
        remove_columns="index",
        features=_FEATURES,
        keep_in_memory=True,
        new_fingerprint=key[:32],
        desc="tokenising",
    )
    if folder is not None:
        _keep(rows, folder)
        rows = datasets.load_from_disk(str(folder))  # mapped from disk, shared by the processes of a machine
    return Tokenised(examples, rows, data_hash)


def examples_hash(examples: Sequence[Example]) -> str:
    """sha256 of the examples as canonical JSON: equal texts, ids and passages in equal order give equal hashes."""
    return _sha256([asdict(example) for example in examples])


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what decides a tokenizer's output: its model, special tokens and chat template."""
    if tokenizer.is_fast:
        model = json.loads(tokenizer.backend_tokenizer.to_str())
        # These two hold what the latest call asked for, not what the tokenizer is.
        model = {part: value for part, value in model.items() if part not in ("truncation", "padding")}
    else:
        model = tokenizer.get_vocab()
    return _sha256([type(tokenizer).__name__, model, tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template])


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _keep(rows: datasets.Dataset, folder: Path) -> None:
    """Writes `rows` beside `folder`, then renames: nobody ever sees half a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder.parent) as partial:
        whole = Path(partial) / "rows"
        rows.save_to_disk(str(whole))
        try:
            os.rename(whole, folder)
        except OSError:
            # Another process came first; what it wrote has the same hash. Anything else is a real failure.
            if not folder.is_dir():
                raise


def _cut(
    pieces: dict[str, Any], example: Example, tokenizer: PreTrainedTokenizerBase, limit: int | None, truncation: str
) -> dict[str, Any]:
    """`pieces` with the context cut to `limit` tokens, and what the cut cost."""
    context, evidence = pieces["context"], pieces["evidence"]
    if limit is None or len(context) <= limit:
        return {**pieces, "length": len(context), "cut": False, "gold_lost": False}
    first = {"head": limit, "tail": 0, "middle": (limit + 1) // 2}[truncation]
    last = len(context) - (limit - first)  # tokens first .. last - 1 go
    per_token = {name: pieces[name] for name in ("context", "evidence", "starts", "ends")}
    if evidence is not None:
        lost = _loses_gold(evidence, first, last)
    else:
        # Decoded before and after, so that what a tokenizer changes in a text cannot look like a loss.
        texts = [tokenizer.decode(ids).casefold() for ids in (context, context[:first], context[last:])]
        whole, *kept = texts
        answers = [answer.strip().casefold() for answer in example.answers]
        lost = any(a in whole for a in answers) and not any(a in text for a in answers for text in kept)
    kept = {name: values and values[:first] + values[last:] for name, values in per_token.items()}
    return {**pieces, **kept, "length": limit, "cut": True, "gold_lost": lost}


def _loses_gold(evidence: list[bool], first: int, last: int) -> bool:
    """Whether some run of gold tokens (a passage) lies wholly in first .. last - 1."""
    start = 0
    for is_gold, run in groupby(evidence):
        end = start + len(list(run))
        if is_gold and first <= start and end <= last:
            return True
        start = end
    return False
