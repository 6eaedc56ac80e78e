"""A split as token ids, truncated to a length, in memory-mapped files under a hash of its inputs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from breviary.contract import Example
from breviary.runtime.distributed import print_progress, print_rank0
from data.prompts import Prompt
from data.store.arrow import Counts, Flags, Rows, RowWriter
from data.store.examples import StoredExamples, canonical_json, store_examples
from data.store.folders import make_once
from data.store.processes import in_processes, process_count

LAYOUT = 3  # part of tokens_hash: increased when the meaning of the ids changes
FILES = 4  # increased when the stored columns change, so that older folders are ignored
SHARD_BYTES = 16 << 20  # of examples' text in a file; more for data of more than MOST_SHARDS files
MOST_SHARDS = 256
TRUNCATIONS = ("head", "tail", "middle")
_IDS = pa.list_(pa.int32())
_PIECES = {
    "prefix": _IDS,
    "context": _IDS,
    "query": _IDS,
    "prompt": _IDS,
    "answer": _IDS,
    "evidence": pa.list_(pa.bool_()),
    "starts": _IDS,
    "ends": _IDS,
}
_RARE_PIECES = {"compressed": _IDS, "choices": pa.list_(_IDS), "targets": pa.list_(pa.bool_())}  # null: no such piece
_STATISTICS = {
    "references": _IDS,  # tokens of each reference in its template, end token included
    "length": pa.int32(),  # context tokens after truncation
    "other": pa.int32(),  # see Tokenised.other_lengths
    "cut": pa.bool_(),  # whether the context was truncated
    "gold_lost": pa.bool_(),
    **dict.fromkeys(("answer_length", "target_length", "compressed_length", "choice_length"), pa.int32()),
}
_SCHEMA = pa.schema({**_PIECES, **_RARE_PIECES, **_STATISTICS})


class Tokenised(torch.utils.data.Dataset):
    """Tokenised examples.

    data_hash       sha256 of the examples, before truncation
    tokens_hash     sha256 of everything that the token ids depend on: examples, tokenizer, prompt, truncation
    lengths         context tokens of each example, after truncation
    other_lengths   further tokens of each example: prefix, the longer of question and prompt, the longer of answer and
                    options
    answer_lengths  answer tokens of each example: of its first reference
    target_lengths  context tokens of each example that training supervises (Batch.targets)
    compressed_lengths  tokens of each compressed_context; 0 where an example has none
    reference_lengths  tokens of every reference of each example, in the answer template, with the end token
    is_truncated    whether each example's context was truncated
    choice_lengths  tokens of the longest option of each example; 0 without
    num_truncated   number of truncated contexts
    num_gold_lost   examples that lost a whole gold passage, or, without gold marks, every occurrence of an answer
    """

    def __init__(self, examples: StoredExamples, rows: Rows, tokens_hash: str, owner: Any = None) -> None:
        assert len(examples) == len(rows), (len(examples), len(rows))
        self.examples, self._rows, self._owner = examples, rows, owner  # owner: of a temporary folder
        self.data_hash, self.tokens_hash = examples.data_hash, tokens_hash
        self.lengths: Counts = rows.counts("length")
        self.is_truncated: Flags = rows.flags("cut")
        self.num_truncated, self.num_gold_lost = sum(self.is_truncated), sum(rows.flags("gold_lost"))
        self.other_lengths: Counts = rows.counts("other")
        self.answer_lengths: Counts = rows.counts("answer_length")
        self.target_lengths: Counts = rows.counts("target_length")
        self.compressed_lengths: Counts = rows.counts("compressed_length")
        self.choice_lengths: Counts = rows.counts("choice_length")

    @property
    def reference_lengths(self) -> list[list[int]]:
        """Tokens of each reference, read on access: only validation and test splits need them."""
        return self._rows.column("references").to_pylist()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pieces of `Prompt.tokenise` as lists, and `example`."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        item = {name: self._rows.value(name, index) for name in _PIECES}
        rare = {name: self._rows.value(name, index) for name in _RARE_PIECES}
        item |= {name: value for name, value in rare.items() if value is not None}
        return item | {"example": self.examples[index]}

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
    Raises: ValueError for a wrong limit or truncation, and as `Prompt.tokenise` and `make_once`.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; allowed: {', '.join(TRUNCATIONS)}")
    if max_context_tokens is not None and max_context_tokens < 1:
        raise ValueError(
            f"max_context_tokens is {max_context_tokens}; it must be 1 or more, or null for no limit, "
            "for example max_context_tokens=2048"
        )
    stored = store_examples(examples, cache_dir)
    inputs = [
        LAYOUT,
        stored.data_hash,
        tokenizer_hash(tokenizer),
        asdict(prompt),
        max_context_tokens,
        truncation if max_context_tokens is not None else None,
    ]
    key = _sha256(inputs)
    job = _Job(stored, tokenizer, prompt, max_context_tokens, truncation)
    owner = None if cache_dir else tempfile.TemporaryDirectory(prefix="tokenised-")
    if owner:
        folder = Path(owner.name) / "rows"
        job.write(folder)
    else:
        assert cache_dir is not None
        folder = Path(cache_dir) / f"tokenised-{FILES}-{key[:32]}"
        make_once(folder, job.write, "tokenised data")
    files = sorted(folder.glob("*.arrow"))
    try:
        rows = Rows(files)
        assert len(rows) == len(stored), (len(rows), len(stored))
    except (OSError, ValueError, AssertionError) as error:
        raise ValueError(f"{folder} is damaged ({error}); delete this folder, it is written anew") from error
    return Tokenised(stored, rows, key, owner)


@dataclass
class _Job:
    """What tokenises examples; the arguments of `tokenise_split`."""

    examples: StoredExamples
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    limit: int | None
    truncation: str

    def write(self, folder: Path) -> None:
        """Writes the files of `folder`, each by one process. They depend on the inputs, not on the processes."""
        folder.mkdir()
        begin = time.monotonic()
        ranges = self.examples.ranges(SHARD_BYTES, MOST_SHARDS)
        tasks = [(folder / f"{number:04d}.arrow", *span) for number, span in enumerate(ranges)]
        for (_, _, end), _ in zip(tasks, in_processes(self._write_range, tasks)):
            if len(tasks) > 1:
                print_progress(f"  {end}/{len(self.examples)} examples tokenised")
        if len(tasks) > 1:
            print_rank0(
                f"{len(self.examples)} examples tokenised in {time.monotonic() - begin:.0f} s by "
                f"{process_count(len(tasks))} processes"
            )

    def _write_range(self, task: tuple[Path, int, int]) -> None:
        file, start, end = task
        with RowWriter(file, _SCHEMA) as writer:
            for index in range(start, end):
                writer.write(self._row(self.examples[index]))

    def _row(self, example: Example) -> dict[str, Any]:
        pieces = self.prompt.tokenise(example, self.tokenizer)
        references = [len(self.prompt.answer(text, self.tokenizer, example.answer_prefix)) for text in example.answers]
        row = _truncate(pieces, example, self.tokenizer, self.limit, self.truncation)
        longest = max(map(len, row.get("choices") or ()), default=0)
        question, answer = max(len(row["query"]), len(row["prompt"])), max(len(row["answer"]), longest)
        for name in ("context", "starts", "ends"):  # the long ones: a list takes nine times the memory of an array
            row[name] = None if row[name] is None else np.asarray(row[name], dtype=np.int32)
        for name in ("evidence", "targets"):
            row[name] = None if row.get(name) is None else np.asarray(row[name], dtype=np.bool_)
        return {
            **row,
            "references": references,
            "other": len(row["prefix"]) + question + answer,
            "answer_length": len(row["answer"]),
            "target_length": 0 if row["targets"] is None else int(row["targets"].sum()),
            "compressed_length": len(row.get("compressed") or ()),
            "choice_length": longest,
        }


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
    return sha256(canonical_json(value).encode("ascii")).hexdigest()


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
    per_token = {name: pieces[name] for name in ("context", "evidence", "starts", "ends", "targets") if name in pieces}
    remaining: dict[str, Any] = {name: values and values[:first] + values[last:] for name, values in per_token.items()}
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
