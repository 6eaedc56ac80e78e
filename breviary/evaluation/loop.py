"""The one evaluation loop: answers, scores, losses, footprint and times, one row of predictions per question.

Shape letters: B examples of a batch, A answer tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Batch, Decoded, Example, Generation, LossOutput, Reader
from breviary.evaluation.likelihoods import choice_nll, continuation_nll
from breviary.objectives.answer import ShuffledContext
from breviary.readers.cache import EncodingStore
from breviary.readers.compressed import CompressedReader
from breviary.runtime.distributed import gather_rows, own_share
from breviary.runtime.memory_errors import EVALUATION, memory_errors
from breviary.runtime.timing import timed_phases

PHASES = ("read", "compress", "prefill", "decode")  # see runtime.timing
Collate = Callable[[Sequence[Any]], Batch]
Scores = Callable[..., dict[str, float]]  # (prediction, references, example); may be a Scorer of config.text_pipeline


def context_id(context: str) -> str:
    """Equal for questions on the same context; the first 16 digits of its sha256."""
    return hashlib.sha256(context.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def context_batches(lengths: Sequence[int], contexts: Iterable[str], batch_size: int) -> list[list[int]]:
    """Batches of indices: questions on one context are adjacent, the longest contexts come first.

    A batch that does not fit into memory is therefore found at once.
    """
    groups = _context_groups(lengths, contexts)
    flat = [index for group in reversed(groups) for index in group]
    return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]


def _context_groups(lengths: Sequence[int], contexts: Iterable[str]) -> list[list[int]]:
    """The indices of each context's questions, the shortest context first."""
    groups: dict[str, list[int]] = {}
    for index, context in enumerate(contexts):
        groups.setdefault(context_id(context), []).append(index)
    return sorted(groups.values(), key=lambda group: (lengths[group[0]], group[0]))


@torch.no_grad()
def evaluate(
    reader: Reader,
    items: Any,
    collate: Collate,
    scores: Scores,
    generation: Generation,
    batch_size: int,
    done: frozenset[str] = frozenset(),
    rank: int = 0,
    world_size: int = 1,
    equal_calls: bool = False,
    unconditional: Mapping[str, float] | None = None,
    shuffled: Mapping[str, float] | None = None,
    store: EncodingStore | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Yields the prediction rows of one batch after another.

    items        tokenised examples: `lengths`, `examples`, `is_truncated`, and items for `collate`
    scores       (prediction, references, example) -> {metric: value}; a Scorer may ask for likelihoods as well
    done         ids that already have a prediction
    rank, world_size  this process answers batches rank, rank + world_size, ...
    equal_calls  for ZeRO-3: every rank makes the same module calls; the last batch is repeated and its rows dropped
    unconditional, shuffled  results of `unconditional_nll` and `shuffled_context_nll`, for the text metrics of an
                 objective (Answer.text_metrics)
    store        encodings of earlier evaluations of the same weights; CompressedReader only
    """
    remaining = [i for i in range(len(items)) if items.examples[i].id not in done]
    batches = context_batches(
        [items.lengths[i] for i in remaining], (items.examples[i].context for i in remaining), batch_size
    )
    own = batches[rank::world_size]
    missing = -(-len(batches) // world_size) - len(own) if equal_calls else 0
    device = next(reader.parameters()).device
    training = reader.training
    reader.eval()
    # No cache under equal calls: a hit on one rank would be a missing call on the others.
    if reader.context_cache_class is not None and not equal_calls:
        reader.context_cache = reader.context_cache_class(batch_size, *([store] if store else []))
    if isinstance(reader, CompressedReader):
        reader.all_steps = equal_calls
    try:
        for number, indices in enumerate(own + (own or batches)[-1:] * missing):
            batch = collate([items[remaining[i]] for i in indices]).to(device)
            with memory_errors("an evaluation batch", EVALUATION, batch):
                rows = _prediction_rows(reader, batch, scores, generation, unconditional or {}, shuffled or {})
            if number < len(own):
                yield [{**row, "truncated": items.is_truncated[remaining[i]]} for row, i in zip(rows, indices)]
    finally:
        reader.train(training)
        reader.context_cache = None
        if isinstance(reader, CompressedReader):
            reader.all_steps = False


@torch.no_grad()
def unconditional_nll(reader: Reader, items: Any, collate: Collate, batch_size: int) -> dict[str, float]:
    """{id: nats of the supervised tokens, end token excluded}.

    reader  the untouched backbone without any context, with the objective of the reader to compare with
    The processes share the batches; each returns the losses of all.
    """
    device = next(reader.parameters()).device
    losses: dict[str, float] = {}
    reader.eval()
    batches = context_batches(items.lengths, (example.context for example in items.examples), batch_size)
    for indices in own_share(batches):
        batch = collate([items[i] for i in indices]).to(device)
        with memory_errors("an evaluation batch", EVALUATION, batch):
            losses |= _nll_without_end(batch, reader.loss(batch))
    return dict(gather_rows(list(losses.items())))


@torch.no_grad()
def shuffled_context_nll(reader: Reader, items: Any, collate: Collate, batch_size: int) -> dict[str, float]:
    """{id: nats of the supervised tokens, end token excluded, given the memory of the next longer context}.

    Empty where all examples share one context, or the reader does not report losses of single tokens.
    The processes share the batches; each returns the losses of all.
    """
    contexts = [context_id(example.context) for example in items.examples]
    batches = context_batches(items.lengths, contexts, batch_size)
    order = [i for group in _context_groups(items.lengths, contexts) for i in group]
    n = len(order)
    other = {
        i: next((j for step in range(1, n) if contexts[j := order[(place + step) % n]] != contexts[i]), None)
        for place, i in enumerate(order)
    }
    if None in other.values():
        return {}
    device, objective = next(reader.parameters()).device, reader.objective
    losses: dict[str, float] = {}
    is_supported = True
    reader.eval()
    try:
        for indices in own_share(batches):
            batch = collate([items[i] for i in indices]).to(device)
            others = collate([items[other[i]] for i in indices]).to(device)
            reader.objective = ShuffledContext(objective, others)
            with memory_errors("an evaluation batch", EVALUATION, batch):
                output = reader.loss(batch)
            if output.supervised is None:
                is_supported = False
                break
            losses |= _nll_without_end(batch, output)
    finally:
        reader.objective = objective
    gathered = dict(gather_rows(list(losses.items())))
    return gathered if all(gather_rows([is_supported])) else {}


def _nll_without_end(batch: Batch, output: LossOutput) -> dict[str, float]:
    """{id: nats of the supervised tokens but the last, the end token}."""
    return {
        example.id: sum(nll[:-1]) for example, nll in zip(batch.examples, _supervised_values(output, output.token_nll))
    }


def _supervised_values(output: LossOutput, values: Tensor) -> list[list[Any]]:
    """The values (B, A) of each row's supervised tokens."""
    assert output.supervised is not None, "a reader that reports no losses of single tokens"
    return [row[mask].tolist() for row, mask in zip(values, output.supervised.mask)]


def _prediction_rows(
    reader: Reader,
    batch: Batch,
    scores: Scores,
    generation: Generation,
    unconditional: Mapping[str, float],
    shuffled: Mapping[str, float],
) -> list[dict[str, Any]]:
    with timed_phases() as seconds:
        answers, output = reader.answer_with_loss(batch, generation)
    reused = list(reader.context_cache.reused) if reader.context_cache else [False] * len(batch)
    if output is None:  # after answering, so that the times include encoding and the loss finds it in the cache
        output = reader.loss(batch)
    footprint = reader.footprint_from_slots(batch, output.slots)
    references, measured = _text_metrics(reader, batch, answers, output, unconditional, shuffled)
    likelihoods = _likelihoods(reader, batch, output, scores)
    rows = []
    for b, (example, answer) in enumerate(zip(batch.examples, answers)):
        rows.append(
            {
                "id": example.id,
                "context_id": context_id(example.context),
                "question": example.question,
                "prediction": answer.text,
                "references": references[b],
                "nll": output.nll[b].item(),
                "answer_tokens": int(output.tokens[b]),
                "context_tokens": int(footprint.context_tokens[b]),
                "memory_slots": int(footprint.memory_slots[b]),
                "memory_bytes": int(footprint.memory_bytes[b]),
                "document_bytes": None if footprint.document_bytes is None else int(footprint.document_bytes[b]),
                "context_reused": reused[b],
                **_gold_position(example),
                "prediction_tokens": len(answer.ids),
                "ended": answer.is_ended,
                "times": _row_times(seconds, reused, b),
                **likelihoods[b],
                **measured[b],
                "scores": {
                    **scores(answer.text, references[b], example),
                    **likelihoods[b].get("scores", {}),
                    **measured[b].get("scores", {}),
                },
            }
        )
    return rows


def _likelihoods(reader: Reader, batch: Batch, output: LossOutput, scores: Scores) -> list[dict[str, Any]]:
    """What the scores of a data set ask of the reader: {"choice_nll", "scores"} and {"ratios"}, for each row."""
    rows: list[dict[str, Any]] = [{} for _ in batch.examples]
    if getattr(scores, "likelihood", False):  # a plain function asks for nothing
        for row, example, nats in zip(rows, batch.examples, choice_nll(reader, batch)):
            row |= {"choice_nll": nats, "scores": scores.of_choices(nats, example)}  # type: ignore[attr-defined]
    if getattr(scores, "perplexity", False):
        for row, pair in zip(rows, continuation_nll(reader, batch, output)):
            row["ratios"] = {"continuation_nll": list(pair)}
    return rows


def _gold_position(example: Example) -> dict[str, float]:
    """{"gold_position": share of the context's characters before the first gold passage}; {} where none is marked."""
    starts = [document.start for document in example.documents if document.is_gold]
    return {"gold_position": min(starts) / max(len(example.context), 1)} if starts else {}


def _row_times(seconds: Mapping[str, float], reused: Sequence[bool], row: int) -> dict[str, float]:
    """Milliseconds of each phase for one row of a batch.

    Reading is divided by the contexts that the batch newly read, and costs nothing where the row's context was not one
    of them. The other phases are divided by the rows.
    """
    times = {f"{phase}_ms": 1000 * seconds[phase] / len(reused) for phase in PHASES}
    return times | {"read_ms": 0.0 if reused[row] else 1000 * seconds["read"] / reused.count(False)}


def _text_metrics(
    reader: Reader,
    batch: Batch,
    answers: list[Decoded],
    output: LossOutput,
    unconditional: Mapping[str, float],
    shuffled: Mapping[str, float],
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """References for the scores, and the objective's text metrics, for each row."""
    objective = getattr(reader, "objective", None)
    if objective is None or objective.text_metrics is None:
        return [list(example.answers) for example in batch.examples], [{}] * len(batch)
    target = objective.primary(batch).answer
    targets = [ids[mask].tolist()[:-1] for ids, mask in zip(target.ids, target.mask)]  # without the end token
    texts = [text.strip() for text in reader.tokenizer.batch_decode(targets, skip_special_tokens=True)]
    nll: list[Any] = [None] * len(batch)
    hits: list[Any] = [None] * len(batch)
    if output.supervised is not None:
        nll, hits = (_supervised_values(output, values) for values in (output.token_nll, output.token_hits))
    measured = [
        objective.text_metrics(
            answer.text,
            answer.ids,
            answer.is_ended,
            texts[b],
            targets[b],
            nll[b],
            hits[b],
            unconditional.get(batch.examples[b].id),
            shuffled.get(batch.examples[b].id),
        )
        for b, answer in enumerate(answers)
    ]
    return [[text] for text in texts], measured
