"""The one evaluation loop: answer, score, loss, footprint, times; one line of predictions per question."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Batch, Decoded, Generation, LossOutput, Reader
from breviary.objectives.answer import ShuffledContext
from breviary.readers.cache import EncodingStore
from breviary.readers.compressed import CompressedReader
from breviary.runtime.timing import timed_phases

PHASES = ("encode", "compress", "prefill", "decode")


def context_batches(lengths: Sequence[int], contexts: Sequence[str], batch_size: int) -> list[list[int]]:
    """Indices in batches: questions on one context stand together, contexts of similar length follow each other."""
    groups: dict[bytes, list[int]] = {}
    for index, context in enumerate(contexts):
        groups.setdefault(hashlib.sha256(context.encode()).digest(), []).append(index)
    ordered = sorted(groups.values(), key=lambda group: (lengths[group[0]], group[0]))
    flat = [index for group in ordered for index in group]
    return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]


@torch.no_grad()
def evaluate(
    reader: Reader,
    items: Any,
    collate: Callable[[list[Any]], Batch],
    scores: Callable[..., dict[str, float]],
    generation: Generation,
    batch_size: int,
    done: frozenset[str] = frozenset(),
    rank: int = 0,
    world_size: int = 1,
    equal_calls: bool = False,
    unconditional: Mapping[str, float] | None = None,
    others: Mapping[str, float] | None = None,
    readings: EncodingStore | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Yields the prediction rows of one batch after another.

    items        tokenised examples with `lengths` and items of `collate`; reader and items on one device afterwards
    scores       (prediction, references) -> {metric: value}
    done         ids that already have a prediction
    rank, world_size  this process answers batches rank, rank + world_size, ...
    equal_calls  ZeRO-3: every rank makes the same module calls; the last batch is repeated, its rows dropped
    unconditional, others  as `unconditional_nll` and `shuffled_context_nll` give, for what the objective measures beside `scores`
        (Answer.measures)
    readings  what earlier evaluations of the same weights read; only for a CompressedReader
    """
    open_items = [i for i in range(len(items)) if items.examples[i].id not in done]
    batches = context_batches(
        [items.lengths[i] for i in open_items], [items.examples[i].context for i in open_items], batch_size
    )
    mine = batches[rank::world_size]
    missing = -(-len(batches) // world_size) - len(mine) if equal_calls else 0
    device = next(reader.parameters()).device
    training = reader.training
    reader.eval()
    # Under equal calls nothing is cached: a hit on one rank would be a missing call on the others.
    if reader.context_cache_class is not None and not equal_calls:
        reader.context_cache = reader.context_cache_class(batch_size, *([readings] if readings else []))
    if isinstance(reader, CompressedReader):
        reader.all_steps = equal_calls
    try:
        for number, batch_indices in enumerate(mine + (mine or batches)[-1:] * missing):
            batch = collate([items[open_items[i]] for i in batch_indices]).to(device)
            rows = _rows(reader, batch, scores, generation, (unconditional or {}, others or {}))
            if number < len(mine):
                yield [{**row, "truncated": items.cut[open_items[i]]} for row, i in zip(rows, batch_indices)]
    finally:
        reader.train(training)
        reader.context_cache = None
        if isinstance(reader, CompressedReader):
            reader.all_steps = False


@torch.no_grad()
def unconditional_nll(
    reader: Reader, items: Any, collate: Callable[[list[Any]], Batch], batch_size: int
) -> dict[str, float]:
    """{id: nats that `reader` spends on what is asked, without the end token}.

    reader  the untouched backbone without any context, with the objective of the reader that is to be compared
    """
    device, found = next(reader.parameters()).device, {}
    reader.eval()
    for indices in context_batches(items.lengths, [example.context for example in items.examples], batch_size):
        batch = collate([items[i] for i in indices]).to(device)
        found |= _spent(batch, reader.loss(batch))
    return found


@torch.no_grad()
def shuffled_context_nll(
    reader: Reader, items: Any, collate: Callable[[list[Any]], Batch], batch_size: int
) -> dict[str, float]:
    """{id: nats that `reader` spends on what is asked, without the end token, with the memory of another context}: of the next longer
    one. Empty where there is but one context, or the reader does not tell single tokens."""
    contexts = [example.context for example in items.examples]
    batches = context_batches(items.lengths, contexts, batch_size)
    order = [i for batch in batches for i in batch]
    n = len(order)
    other = {
        i: next((j for step in range(1, n) if contexts[j := order[(place + step) % n]] != contexts[i]), None)
        for place, i in enumerate(order)
    }
    if None in other.values():
        return {}
    device, found, objective = next(reader.parameters()).device, {}, reader.objective
    reader.eval()
    try:
        for indices in batches:
            asked, read = (
                collate([items[i] for i in rows]).to(device) for rows in (indices, [other[i] for i in indices])
            )
            reader.objective = ShuffledContext(objective, read)
            output = reader.loss(asked)
            if output.supervised is None:
                return {}
            found |= _spent(asked, output)
    finally:
        reader.objective = objective
    return found


def _spent(batch: Batch, output: LossOutput) -> dict[str, float]:
    """{id: nats on its supervised tokens but the last, the end token}."""
    return {
        example.id: sum(nll[:-1]) for example, nll in zip(batch.examples, _texts_and_ends(output, output.token_nll))
    }


def _texts_and_ends(output: LossOutput, values: Tensor) -> list[list[Any]]:
    """The values (B, A) of each row's supervised tokens."""
    return [row[mask].tolist() for row, mask in zip(values, output.supervised.mask)]


def _rows(
    reader: Reader,
    batch: Batch,
    scores: Callable[..., dict[str, float]],
    generation: Generation,
    beside: tuple[Mapping[str, float], Mapping[str, float]],
) -> list[dict[str, Any]]:
    with timed_phases() as seconds:
        written, output = reader.answer_with_loss(batch, generation)
    reused = reader.context_cache.reused if reader.context_cache else [False] * len(batch)
    output = reader.loss(batch) if output is None else output  # after: what answering reads is timed, then kept
    footprint = reader.footprint_from_slots(batch, output.slots)
    times = {f"{phase}_ms": 1000 * seconds[phase] / len(batch) for phase in PHASES}
    rows = []
    measured = _measured(reader, batch, written, output, beside)
    for b, (example, own, (references, parts)) in enumerate(zip(batch.examples, written, measured)):
        rows.append(
            {
                "id": example.id,
                "question": example.question,
                "prediction": own.text,
                "references": references,
                "nll": output.nll[b].item(),
                "answer_tokens": int(output.tokens[b]),
                "context_tokens": int(footprint.context_tokens[b]),
                "memory_slots": int(footprint.memory_slots[b]),
                "memory_bytes": int(footprint.memory_bytes[b]),
                "context_reused": reused[b],
                "times": times,
                **parts,
                "scores": scores(own.text, references) | parts.get("scores", {}),
            }
        )
    return rows


def _measured(
    reader: Reader,
    batch: Batch,
    written: list[Decoded],
    output: LossOutput,
    beside: tuple[Mapping[str, float], Mapping[str, float]],
) -> list[tuple[list[str], dict[str, Any]]]:
    """For each row the references that scores look at, and what the objective measures beside them."""
    objective = getattr(reader, "objective", None)
    if objective is None or objective.measures is None:
        return [(list(example.answers), {}) for example in batch.examples]
    asked = objective.primary(batch).answer
    targets = [ids[mask].tolist()[:-1] for ids, mask in zip(asked.ids, asked.mask)]  # without the end token
    texts = [text.strip() for text in reader.tokenizer.batch_decode(targets, skip_special_tokens=True)]
    tells = output.supervised is not None
    spent = [
        _texts_and_ends(output, values) if tells else [None] * len(batch)
        for values in (output.token_nll, output.token_hits)
    ]
    return [
        (
            [text],
            objective.measures(
                own.text, own.ids, own.is_ended, text, target, nll, hits, *(known.get(example.id) for known in beside)
            ),
        )
        for example, own, text, target, nll, hits in zip(batch.examples, written, texts, targets, *spent)
    ]
