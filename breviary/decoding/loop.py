"""The one decode loop, over anything that gives next-token logits.

Shape letters: B rows, V vocabulary, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Decoded, Generation


def decode(*args: Any, **kwargs: Any) -> list[str]:
    """The texts of `write`."""
    return [written.text for written in write(*args, **kwargs)]


def write(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    all_steps: bool = False,
    end_ids: tuple[int, ...] = (),
) -> list[Decoded]:
    """Decodes one answer per row; arguments as of `steps`."""
    for chosen in steps(logits, step, generation, tokenizer, all_steps, end_ids):
        pass
    texts = tokenizer.batch_decode(chosen, skip_special_tokens=True)
    ended = [bool(ids) and ids[-1] in {*end_ids, tokenizer.eos_token_id} for ids in chosen]
    return [
        Decoded(_cut(text, generation.stop).strip(), ids[:-1] if end else ids, end)
        for text, ids, end in zip(texts, chosen, ended)
    ]


def decode_stream(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    end_ids: tuple[int, ...] = (),
) -> Iterator[str]:
    """Decodes the answer of one row, logits (1, V), and gives its text as it comes; together the text of `decode`.

    Held back is what may still go: white space at the end, half a character, the beginning of a stop string.
    """
    given = ""
    for [ids] in steps(logits, step, generation, tokenizer, False, end_ids):
        text = _cut(tokenizer.decode(ids, skip_special_tokens=True), generation.stop)
        sure = text[: len(text) - _open_end(text, generation.stop)].rstrip("\ufffd").strip()
        if len(sure) > len(given) and sure.startswith(given):
            yield sure[len(given) :]
            given = sure
    text = text.strip()
    assert text.startswith(given), f"this tokenizer's texts change as they grow: {given!r} became {text!r}"
    if text != given:
        yield text[len(given) :]


@torch.no_grad()
def steps(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    generation: Generation,
    tokenizer: Any,
    all_steps: bool = False,
    end_ids: tuple[int, ...] = (),
) -> Iterator[list[list[int]]]:
    """The decode loop: after each step the ids chosen so far, one list a row, which grow until the row has ended.

    logits     (B, V) after the prompt
    step       takes the chosen ids (B,) and gives the next logits (B, V)
    all_steps  go on to max_new_tokens whatever the rows hold: under ZeRO-3 every rank must make the same calls
    end_ids    tokens that end an answer beside the tokenizer's end token (Stack.end_ids)
    """
    B = len(logits)
    end_ids = {*end_ids, tokenizer.eos_token_id} - {None}
    chosen: list[list[int]] = [[] for _ in range(B)]
    finished = [False] * B
    generator = torch.Generator(device=logits.device).manual_seed(generation.seed)
    for n in range(generation.max_new_tokens):
        own = logits.to(torch.float32, copy=True)  # edited below; the caller's stay as they are
        ids = _choose(own, chosen, generation, sorted(end_ids) if n < generation.min_new_tokens else [], generator)
        for row, token in enumerate(ids.tolist()):
            if not finished[row]:
                chosen[row].append(token)
                finished[row] = token in end_ids or _stopped(tokenizer, chosen[row], generation.stop)
        yield chosen
        if n + 1 == generation.max_new_tokens or (all(finished) and not all_steps):
            break
        logits = step(ids)


def _choose(
    logits: Tensor, chosen: list[list[int]], generation: Generation, barred: list[int], generator: torch.Generator
) -> Tensor:
    """Next ids (B,) from logits (B, V) in float32."""
    if barred:
        logits[:, barred] = -torch.inf
    if generation.repetition_penalty != 1.0:
        for row, ids in enumerate(chosen):
            seen = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits.device)
            scores = logits[row, seen]
            logits[row, seen] = torch.where(
                scores > 0, scores / generation.repetition_penalty, scores * generation.repetition_penalty
            )
    if generation.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / generation.temperature).softmax(-1)
    ordered, order = probabilities.sort(-1, descending=True)
    # A token is kept while the mass before it is below top_p; the first always is.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= generation.top_p, 0)
    return order.gather(1, torch.multinomial(ordered, 1, generator=generator))[:, 0]


def _stopped(tokenizer: Any, ids: list[int], stop: tuple[str, ...]) -> bool:
    if not stop:
        return False
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return any(s in text for s in stop)


def _cut(text: str, stop: tuple[str, ...]) -> str:
    for s in stop:
        text = text.split(s, 1)[0]
    return text


def _open_end(text: str, stop: tuple[str, ...]) -> int:
    """Characters at the end of `text` that could be the beginning of a stop string."""
    return max((n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0)
