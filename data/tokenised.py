"""A split as token ids, truncated to a length and cached on disk under a hash of its inputs."""

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

LAYOUT = 3  # increased when the stored columns or their meaning change, so that older folders are ignored
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
        "references": _IDS,  # tokens of each reference in its template, end token included
        "length": datasets.Value("int32"),  # context tokens after truncation
        "cut": datasets.Value("bool"),  # whether the context was truncated
        "gold_lost": datasets.Value("bool"),
    }
)


class Tokenised(torch.utils.data.Dataset):
    """Tokenised examples.

    data_hash       sha256 of the examples, before truncation
    tokens_hash     sha256 of everything that the token ids depend on: examples, tokenizer, prompt, truncation
    lengths         context tokens of each example, after truncation
    other_lengths   further tokens of each example: prefix, the longer of question and prompt, the longer of answer and
                    options
    answer_lengths  answer tokens of each example: of its first reference
    compressed_lengths  tokens of each compressed_context; 0 where an example has none
    reference_lengths  tokens of every reference of each example, in the answer template, with the end token
    is_truncated    whether each example's context was truncated
    choice_lengths  tokens of the longest option of each example; 0 without
    num_truncated   number of truncated contexts
    num_gold_lost   examples that lost a whole gold passage, or, without gold marks, every occurrence of an answer
    """

    def __init__(
        self, examples: Sequence[Example], rows: datasets.Dataset, data_hash: str, tokens_hash: str = ""
    ) -> None:
        assert len(examples) == len(rows), (len(examples), len(rows))
        self.examples = examples
        self.data_hash, self.tokens_hash = data_hash, tokens_hash
        self.lengths: list[int] = list(rows["length"])
        self.is_truncated: list[bool] = list(rows["cut"])
        self.num_truncated = sum(self.is_truncated)
        self.num_gold_lost = sum(rows["gold_lost"])
        choices = rows["choices"] if "choices" in rows.column_names else [None] * len(rows)
        self.choice_lengths: list[int] = [max((len(ids) for ids in options or ()), default=0) for options in choices]
        columns = (rows["prefix"], rows["query"], rows["prompt"], rows["answer"], self.choice_lengths)
        self.other_lengths: list[int] = [
            len(prefix) + max(len(query), len(prompt)) + max(len(answer), longest)
            for prefix, query, prompt, answer, longest in zip(*columns)
        ]
        compressed = rows["compressed"] if "compressed" in rows.column_names else [None] * len(rows)
        self.compressed_lengths: list[int] = [len(ids or ()) for ids in compressed]
        self.answer_lengths: list[int] = [len(answer) for answer in rows["answer"]]
        self.reference_lengths: list[list[int]] = list(rows["references"])
        self._rows = rows.remove_columns(["references", "length", "cut", "gold_lost"])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pieces of `Prompt.tokenise` as lists, and `example`."""
        return {**self._rows[index], "example": self.examples[index]}

    def report(self) -> str:
        """Number of examples, their lengths, truncated contexts and lost gold passages, on one line."""
        mean = sum(self.lengths) / max(1, len(self.lengths))
        return (
            f"{len(self)} examples, {mean:.0f} context tokens on average, {max(self.lengths, default=0)} at most; "
            f"{self.num_truncated} contexts truncated, {self.num_gold_lost} lost their gold; data {self.data_hash[:12]}"
        )


def tokenise_split(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    max_context_tokens: int | None,
    cache_dir: str | None,
    truncation: str = "middle",
) -> Tokenised:
    """Tokenises `examples`, or loads the result of an earlier call with equal arguments from `cache_dir`.

    max_context_tokens  longest context; longer ones are truncated. None = no limit. Questions and answers are never
                        truncated.
    truncation          head keeps the first tokens, tail the last, middle both ends (half each)
    cache_dir           None = no cache. Several processes may call at once: each writes a folder of its own, and the
                        first one renames it into place.
    Raises: ValueError for a wrong limit or truncation, and as `Prompt.tokenise`.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; allowed: {', '.join(TRUNCATIONS)}")
    if max_context_tokens is not None and max_context_tokens < 1:
        raise ValueError(
            f"max_context_tokens is {max_context_tokens}; it must be 1 or more, or null for no limit, "
            "for example max_context_tokens=2048"
        )
    data_hash = examples_hash(examples)
    inputs = [
        LAYOUT,
        data_hash,
        tokenizer_hash(tokenizer),
        asdict(prompt),
        max_context_tokens,
        truncation if max_context_tokens is not None else None,
    ]
    key = _sha256(inputs)
    folder = None if cache_dir is None else Path(cache_dir) / f"tokenised-{key[:32]}"
    if folder is not None and folder.is_dir():
        return Tokenised(examples, datasets.load_from_disk(str(folder)), data_hash, key)

    features = _features(examples)

    def tokenise_row(index: int) -> dict[str, Any]:
        example = examples[index]
        pieces = prompt.tokenise(example, tokenizer)
        references = [len(prompt.answer(text, tokenizer, example.answer_prefix)) for text in example.answers]
        pieces = _truncate(pieces, example, tokenizer, max_context_tokens, truncation)
        return {name: {**pieces, "references": references}.get(name) for name in features}

    rows = datasets.Dataset.from_dict({"index": list(range(len(examples)))}).map(
        tokenise_row,
        input_columns="index",
        remove_columns="index",
        features=features,
        keep_in_memory=True,
        new_fingerprint=key[:32],
        desc="tokenising",
    )
    if folder is not None:
        _save(rows, folder)
        rows = datasets.load_from_disk(str(folder))  # memory-mapped, shared by the processes of a machine
    return Tokenised(examples, rows, data_hash, key)


def _features(examples: Sequence[Example]) -> datasets.Features:
    """The stored columns: `compressed` and `choices` where an example has them."""
    added: dict[str, Any] = {}
    if any(example.compressed_context is not None for example in examples):
        added["compressed"] = _IDS
    if any(example.choices for example in examples):
        added["choices"] = datasets.List(_IDS)
    return datasets.Features({**_FEATURES, **added})


def examples_hash(examples: Sequence[Example]) -> str:
    """sha256 of the examples as canonical JSON: of texts, ids and passages in their order."""
    return _sha256([_hashed_fields(example) for example in examples])


def _hashed_fields(example: Example) -> dict[str, Any]:
    """An example as plain values. A field that was added later counts only where it is set."""
    fields = asdict(example)
    unset = {"compressed_context": None, "answer_prefix": "", "choices": ()}
    return {name: value for name, value in fields.items() if name not in unset or value != unset[name]}


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that determines a tokenizer's output: model, special tokens and chat template."""
    if tokenizer.is_fast:
        model = json.loads(tokenizer.backend_tokenizer.to_str())
        # These two hold the arguments of the latest call.
        model = {part: value for part, value in model.items() if part not in ("truncation", "padding")}
    else:
        model = tokenizer.get_vocab()
    return _sha256([type(tokenizer).__name__, model, tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template])


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _save(rows: datasets.Dataset, folder: Path) -> None:
    """Writes `rows` into a temporary folder and renames it, so that `folder` is never incomplete.

    Raises: ValueError where the cache cannot be written or its disk is full.
    """
    try:
        _save_atomically(rows, folder)
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: tokenised data cannot be written there ({error.strerror or error}); free space, or set "
            "paths.cache (or the environment variable BREVIARY_CACHE) to a folder that you may write, e.g. "
            "paths.cache=cache"
        ) from error


def _save_atomically(rows: datasets.Dataset, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder.parent) as partial:
        complete = Path(partial) / "rows"
        rows.save_to_disk(str(complete))
        try:
            os.rename(complete, folder)
        except OSError:
            # Another process was first, and its folder has the same hash. Any other cause is an error.
            if not folder.is_dir():
                raise


def _truncate(
    pieces: dict[str, Any], example: Example, tokenizer: PreTrainedTokenizerBase, limit: int | None, truncation: str
) -> dict[str, Any]:
    """`pieces` with at most `limit` context tokens, and `length`, `cut` and `gold_lost` (see _FEATURES)."""
    context, evidence = pieces["context"], pieces["evidence"]
    if limit is None or len(context) <= limit:
        return {**pieces, "length": len(context), "cut": False, "gold_lost": False}
    first = {"head": limit, "tail": 0, "middle": (limit + 1) // 2}[truncation]
    last = len(context) - (limit - first)  # tokens [first, last) are removed
    if evidence is not None:
        gold_lost = _removes_gold(evidence, first, last)
    else:
        gold_lost = _removes_answers(
            example, [tokenizer.decode(ids) for ids in (context, context[:first], context[last:])]
        )
    per_token = {name: pieces[name] for name in ("context", "evidence", "starts", "ends")}
    remaining = {name: values and values[:first] + values[last:] for name, values in per_token.items()}
    return {**pieces, **remaining, "length": limit, "cut": True, "gold_lost": gold_lost}


def _removes_answers(example: Example, decoded: list[str]) -> bool:
    """Whether the context holds an answer, but neither end that remains does. `decoded` is [context, head, tail].

    All three are decoded from tokens, so that a text which the tokenizer changes does not count as lost.
    """
    context, *ends = (text.casefold() for text in decoded)
    answers = [answer.strip().casefold() for answer in example.answers]
    return any(a in context for a in answers) and not any(a in text for a in answers for text in ends)


def _removes_gold(evidence: list[bool], first: int, last: int) -> bool:
    """Whether a whole run of gold tokens (a passage) lies in [first, last)."""
    start = 0
    for is_gold, run in groupby(evidence):
        end = start + len(list(run))
        if is_gold and first <= start and end <= last:
            return True
        start = end
    return False
