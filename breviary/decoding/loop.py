"""The decode loop, shared by all readers: greedy or sampled, stop strings, streaming.

Shape letters: B rows, V vocabulary, K keys.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Decoded, Generation
from breviary.runtime.draws import seeded_rng

KeepRows = Callable[[Tensor], None]
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # of tokenizers with byte fallback


def decode_texts(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    all_steps: bool = False,
    end_ids: tuple[int, ...] = (),
    example_ids: Sequence[str] | None = None,
    keep_rows: KeepRows | None = None,
) -> list[str]:
    """The texts of `decode_batch`."""
    decoded = decode_batch(logits, step, generation, tokenizer, all_steps, end_ids, example_ids, keep_rows)
    return [answer.text for answer in decoded]


def decode_batch(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    all_steps: bool = False,
    end_ids: tuple[int, ...] = (),
    example_ids: Sequence[str] | None = None,
    keep_rows: KeepRows | None = None,
) -> list[Decoded]:
    """Decodes one answer per row; arguments as in `decode_steps`."""
    *_, rows = decode_steps(logits, step, generation, tokenizer, all_steps, end_ids, example_ids, keep_rows)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    ended = [bool(ids) and ids[-1] in {*end_ids, tokenizer.eos_token_id} for ids in rows]
    return [
        Decoded(_cut_at_stop(text, generation.stop).strip(), ids[:-1] if is_ended else ids, is_ended)
        for text, ids, is_ended in zip(texts, rows, ended)
    ]


def decode_stream(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    end_ids: tuple[int, ...] = (),
    example_ids: Sequence[str] | None = None,
) -> Iterator[str]:
    """Decodes one row, logits (1, V), and yields pieces of text; joined, they equal the text of `decode_texts`.

    Text that later tokens may change or remove is held back: trailing white space, an incomplete character, the
    beginning of a stop string.
    """
    sent, special = "", frozenset(tokenizer.all_special_ids)
    for [ids] in decode_steps(logits, step, generation, tokenizer, False, end_ids, example_ids):
        complete = ids[: _complete_length(tokenizer, ids, special)]
        # A stop string may continue with the character that is incomplete now, so that is removed first.
        text = _cut_at_stop(tokenizer.decode(complete, skip_special_tokens=True).rstrip("\ufffd"), generation.stop)
        final = text[: len(text) - _partial_stop_length(text, generation.stop)].strip()
        if len(final) > len(sent) and final.startswith(sent):
            yield final[len(sent) :]
            sent = final
    text = _cut_at_stop(tokenizer.decode(ids, skip_special_tokens=True), generation.stop).strip()
    assert text.startswith(sent), f"later tokens changed earlier text: {sent!r} became {text!r}"
    if text != sent:
        yield text[len(sent) :]


@torch.no_grad()
def decode_steps(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    all_steps: bool = False,
    end_ids: tuple[int, ...] = (),
    example_ids: Sequence[str] | None = None,
    keep_rows: KeepRows | None = None,
) -> Iterator[list[list[int]]]:
    """The decode loop. After each step, yields the ids decoded so far, one list per row; ended rows no longer grow.

    logits       (B, V) after the prompt
    step         maps the last ids (B,) to the next logits (B, V)
    all_steps    always run max_new_tokens steps: under ZeRO-3 every rank must make the same calls
    end_ids      tokens that end an answer, in addition to the tokenizer's end token (Stack.end_ids)
    example_ids  (B,) `Example.id` of each row. A sampled answer depends on generation.seed and this id, not on the
                 other rows; None = the row's number
    keep_rows    drops finished rows: called with the indices (R,) int64 of the rows that continue; `step` then takes
                 (R,) ids. None = finished rows stay in the batch, as with all_steps
    """
    names = range(len(logits)) if example_ids is None else example_ids
    assert len(names) == len(logits), f"{len(names)} example ids for {len(logits)} rows"
    all_end_ids = {*end_ids, tokenizer.eos_token_id} - {None}
    rows: list[list[int]] = [[] for _ in range(len(logits))]
    is_ended = [False] * len(logits)
    present = list(range(len(logits)))  # batch row of each row of `logits`
    generators = [seeded_rng("sampling", generation.seed, name) for name in names]
    for n in range(generation.max_new_tokens):
        scores = logits.to(torch.float32, copy=True)  # modified in place; the caller's tensor stays unchanged
        suppressed = sorted(all_end_ids) if n < generation.min_new_tokens else []
        ids = _next_tokens(
            scores, [rows[row] for row in present], generation, suppressed, [generators[row] for row in present]
        )
        for row, token in zip(present, ids.tolist()):
            if not is_ended[row]:
                rows[row].append(token)
                is_ended[row] = token in all_end_ids or _contains_stop(tokenizer, rows[row], generation.stop)
        yield rows
        if n + 1 == generation.max_new_tokens or (all(is_ended) and not all_steps):
            break
        active = [i for i, row in enumerate(present) if not is_ended[row]]
        # Dropping rows copies the keys and values of the others: worthwhile once a quarter of the batch has ended.
        if keep_rows is not None and not all_steps and 4 * (len(present) - len(active)) >= len(present):
            index = torch.tensor(active, device=ids.device)
            keep_rows(index)
            ids, present = ids[index], [present[i] for i in active]
        logits = step(ids)


def _next_tokens(
    logits: Tensor,
    rows: list[list[int]],
    generation: Generation,
    suppressed: list[int],
    generators: Sequence[random.Random],
) -> Tensor:
    """Next ids (B,) from float32 logits (B, V), which it modifies. `suppressed` ids are never selected.

    Sampling draws one number from each row's generator.
    """
    if suppressed:
        logits[:, suppressed] = -torch.inf
    if generation.repetition_penalty != 1.0:
        for row, ids in enumerate(rows):
            seen = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits.device)
            scores = logits[row, seen]
            logits[row, seen] = torch.where(
                scores > 0, scores / generation.repetition_penalty, scores * generation.repetition_penalty
            )
    if generation.temperature == 0:
        return logits.argmax(-1)
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / generation.temperature).softmax(-1)
    if generation.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        # Nucleus: tokens whose preceding cumulative probability is below top_p; the first always qualifies.
        outside = ordered.cumsum(-1) - ordered >= generation.top_p
        probabilities = probabilities.masked_fill(outside.scatter(-1, order, outside), 0)
    # Inverse of the cumulative distribution, in the vocabulary's order: the order by probability changes with rounding.
    # Drawn numbers are strictly between 0 and 1, so the sum reaches them, at a token of positive probability.
    cumulative = probabilities.double().cumsum(-1)
    drawn = [(int(generator.random() * 2**32) + 0.5) / 2**32 for generator in generators]
    targets = torch.tensor(drawn, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets)[:, 0]


def _contains_stop(tokenizer: Any, ids: list[int], stop: tuple[str, ...]) -> bool:
    if not stop:
        return False
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return any(s in text for s in stop)


def _cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    for s in stop:
        text = text.split(s, 1)[0]
    return text


def _partial_stop_length(text: str, stop: tuple[str, ...]) -> int:
    """Number of characters at the end of `text` that could begin a stop string."""
    return max((n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0)


def _complete_length(tokenizer: Any, ids: list[int], special: frozenset[int]) -> int:
    """Number of `ids` before the trailing byte tokens. Byte fallback decodes a run of them as a whole.

    A later byte can therefore replace every character of the run. `special` ids are skipped in decoding, so they do not
    end a run.
    """
    end = len(ids)
    while end and (ids[end - 1] in special or BYTE_TOKEN.fullmatch(str(tokenizer.convert_ids_to_tokens(ids[end - 1])))):
        end -= 1
    return end
