"""Speed of greedy decoding with full context against `generate` of transformers, on the same prompts and weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from breviary.config.build import build_backbone
from breviary.config.compose import compose_config
from breviary.contract import Batch, Example, Generation, Tokens
from breviary.evaluation.bench.rows import MeasuredRows, Row
from breviary.evaluation.timing import median_ratio, reader_from_overrides
from breviary.runtime.device import synchronise

KEYS = ("case", "tokens")  # of a row
QUESTION = 16  # tokens
# {case: (contexts differ in length, down to half; questions per context; answers end early)}
CASES = {"equal": (False, 1, False), "ragged": (True, 1, False), "shared": (False, 4, False), "ending": (True, 1, True)}
Seconds = tuple[float, float]  # wall time, time of this process's CPUs


@torch.no_grad()
def measure_generation(
    shared: Sequence[str], length: int, batch: int, new_tokens: int, runs: int, rows: MeasuredRows
) -> Iterator[Row]:
    """One row per case, contexts of up to `length` tokens. Both implementations run in turns, after a warm-up.

    shared  overrides of the reader: backbone, dtype
    batch   number of questions, a multiple of 4
    rows    earlier measurements: cases with `runs` turns are skipped
    """
    shared = ["compressor=full_context", "decoder.train=frozen", *shared]
    reader = reader_from_overrides(*shared).eval()
    backbone = build_backbone(compose_config("train", shared))
    model = backbone.load().to(next(reader.parameters()).device).eval()
    for case, (is_ragged, questions, is_ending) in CASES.items():
        if len((rows.find(case=case, tokens=length) or {}).get("ours_cpu_s", ())) >= runs:
            continue
        examples = _batch(length, batch, is_ragged, questions, model.config.vocab_size).to(model.device)
        least = 0 if is_ending else new_tokens
        reader.decoder.end_ids = ()
        ours = partial(_ours, reader, examples, Generation(max_new_tokens=new_tokens, min_new_tokens=least))
        if is_ending:
            reader.decoder.end_ids = (_ending_token(ours()),)
        theirs = partial(_transformers, model, examples, new_tokens, least, reader.decoder.end_ids)
        first = ours(), theirs()
        turns = [(_timed(theirs), _timed(ours)) for _ in range(runs)]
        yield {"case": case, "tokens": length, "batch": batch, "new_tokens": new_tokens} | _summary(first, turns)


def _summary(first: tuple[list[list[int]], list[list[int]]], turns: list[tuple[Seconds, Seconds]]) -> Row:
    """Times of all turns; ratios ours / transformers within a turn; number of equal answers."""
    row: Row = {"equal_answers": sum(one == other for one, other in zip(*first)), "answered": sum(map(len, first[0]))}
    for name, index in (("wall", 0), ("cpu", 1)):
        theirs, ours = ([turn[side][index] for turn in turns] for side in (0, 1))
        row |= {f"transformers_{name}_s": theirs, f"ours_{name}_s": ours, f"{name}_ratio": median_ratio(ours, theirs)}
    return row


def _timed(call: Callable[[], Any]) -> Seconds:
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronise()
    return time.perf_counter() - wall, time.process_time() - cpu


def _ours(reader: Any, batch: Batch, generation: Generation) -> list[list[int]]:
    """Answers as in an evaluation, from an empty cache: each context is encoded once."""
    reader.context_cache = reader.context_cache_class(len(batch))
    decoded = reader.decode(batch, generation)
    reader.context_cache = None
    return [answer.ids for answer in decoded]


def _transformers(model: Any, batch: Batch, new_tokens: int, least: int, end_ids: tuple[int, ...]) -> list[list[int]]:
    """Answers of `generate`: left-padded prompts, sdpa, transformers' cache."""
    assert isinstance(model, PreTrainedModel), type(model)
    texts = [
        torch.cat([part.ids[row][part.mask[row]] for part in (batch.context, batch.prompt)])
        for row in range(len(batch))
    ]
    ids = pad_sequence(texts, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side="left")
    end: dict[str, Any] = {"eos_token_id": list(end_ids)} if end_ids else {"min_new_tokens": least}
    answers = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, **end
    )
    rows = answers[:, ids.shape[1] :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in end_ids), len(row))] for row in rows]


def _ending_token(answers: list[list[int]]) -> int:
    """The token that occurs in a number of answers closest to half, used as the end token."""
    tokens = {token for ids in answers for token in ids}
    return min(sorted(tokens), key=lambda token: abs(2 * sum(token in ids for ids in answers) - len(answers)))


def _batch(length: int, batch: int, is_ragged: bool, questions: int, vocabulary: int) -> Batch:
    """Random tokens; ragged contexts from `length` down to half of it; `questions` rows per context."""
    generator = torch.Generator().manual_seed(0)

    def tokens(lengths: Sequence[int]) -> Tokens:
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids: Tensor = torch.randint(10, vocabulary, mask.shape, generator=generator)
        return Tokens(ids.masked_fill(~mask, 0), mask)

    contexts = batch // questions
    lengths = [length - (row * length // (2 * contexts) if is_ragged else 0) for row in range(contexts)]
    index = torch.arange(batch) // questions
    context, question = tokens(lengths).rows(index), tokens([QUESTION] * batch)
    examples = [Example(str(row), "", "", ()) for row in range(batch)]
    return Batch(tokens([0] * batch), context, question, question, tokens([1] * batch), None, None, examples)
