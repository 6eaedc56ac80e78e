"""The decode loop, shared by all readers: greedy or sampled, stop strings, streaming.

Shape letters: B rows, V vocabulary, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Decoded, Generation


def decode_texts(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    all_steps: bool = False,
    end_ids: tuple[int, ...] = (),
) -> list[str]:
    """The texts of `decode_batch`."""
    decoded = decode_batch(logits, step, generation, tokenizer, all_steps, end_ids)
    return [answer.text for answer in decoded]


def decode_batch(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    all_steps: bool = False,
    end_ids: tuple[int, ...] = (),
) -> list[Decoded]:
    """Decodes one answer per row; arguments as in `decode_steps`."""
    *_, rows = decode_steps(logits, step, generation, tokenizer, all_steps, end_ids)
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
) -> Iterator[str]:
    """Decodes one row, logits (1, V), and yields pieces of text; joined, they equal the text of `decode_texts`.

    Text that later tokens may change or remove is held back: trailing white space, an incomplete character, the
    beginning of a stop string.
    """
    sent = ""
    for [ids] in decode_steps(logits, step, generation, tokenizer, False, end_ids):
        text = _cut_at_stop(tokenizer.decode(ids, skip_special_tokens=True), generation.stop)
        final = text[: len(text) - _partial_stop_length(text, generation.stop)].rstrip("\ufffd").strip()
        if len(final) > len(sent) and final.startswith(sent):
            yield final[len(sent) :]
            sent = final
    text = text.strip()
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
) -> Iterator[list[list[int]]]:
    """The decode loop. After each step, yields the ids decoded so far, one list per row; ended rows no longer grow.

    logits     (B, V) after the prompt
    step       maps the last ids (B,) to the next logits (B, V)
    all_steps  always run max_new_tokens steps: under ZeRO-3 every rank must make the same calls
    end_ids    tokens that end an answer, in addition to the tokenizer's end token (Stack.end_ids)
    """
    all_end_ids = {*end_ids, tokenizer.eos_token_id} - {None}
    rows: list[list[int]] = [[] for _ in range(len(logits))]
    is_ended = [False] * len(logits)
    generator = torch.Generator(device=logits.device).manual_seed(generation.seed)
    for n in range(generation.max_new_tokens):
        scores = logits.to(torch.float32, copy=True)  # modified in place; the caller's tensor stays unchanged
        suppressed = sorted(all_end_ids) if n < generation.min_new_tokens else []
        ids = _next_tokens(scores, rows, generation, suppressed, generator)
        for row, token in enumerate(ids.tolist()):
            if not is_ended[row]:
                rows[row].append(token)
                is_ended[row] = token in all_end_ids or _contains_stop(tokenizer, rows[row], generation.stop)
        yield rows
        if n + 1 == generation.max_new_tokens or (all(is_ended) and not all_steps):
            break
        logits = step(ids)


def _next_tokens(
    logits: Tensor, rows: list[list[int]], generation: Generation, suppressed: list[int], generator: torch.Generator
) -> Tensor:
    """Next ids (B,) from float32 logits (B, V), which it modifies. `suppressed` ids are never selected."""
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
    probabilities = (logits / generation.temperature).softmax(-1)
    ordered, order = probabilities.sort(-1, descending=True)
    # Nucleus: tokens whose preceding cumulative probability is below top_p; the first always qualifies.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= generation.top_p, 0)
    return order.gather(1, torch.multinomial(ordered, 1, generator=generator))[:, 0]


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
