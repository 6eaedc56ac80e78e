"""The one decode loop, over anything that gives next-token logits.

Shape letters: B rows, V vocabulary, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from breviary.contract import Decoded, Generation
from breviary.prefilled import Prefilled
from breviary.stack import ReadOnlyCache, Stack


class DecodingStream:
    """A half-read sequence whose lower and upper layers hold different keys.

    Below the joining layer n the cache holds [prefix, question, answer so far], from n on [prefix, memory, question,
    answer so far]; with n = 0 there is no lower part.
    """

    def __init__(self, stack: Stack, layer: int):
        self.stack, self.layer = stack, layer
        self.cache = DynamicCache()  # without a configuration: layers may differ in length
        self.below: Tensor | None = None  # (B, K) valid keys of the lower layers
        self.above: Tensor | None = None
        self.next_position: Tensor | None = None  # (B,)
        self.slots: Tensor | None = None  # (B,) int64, memory slots among the upper layers' keys

    def read_below(self, states: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """First pass through the lower layers; states (B, N, D), left-padded."""
        self.below = mask
        return self.stack.run(states, range(self.layer), positions, mask, self.cache)

    def read_above(self, states: Tensor, positions: Tensor, mask: Tensor, before: Prefilled | None = None) -> Tensor:
        """First pass through the upper layers; gives the logits after the last column, (B, V). before: what these layers hold
        already, of which `mask` (B, K + N) tells as well."""
        self.above = mask
        for layer, (keys, values) in before.keys_values.items() if before else ():
            self.cache.update(keys, values, layer)
        self.next_position = positions[:, -1] + 1
        states = self.stack.run(states, range(self.layer, len(self.stack)), positions, mask, self.cache)
        return self.stack.head(self.stack.norm(states[:, -1:]))[:, 0]

    def read_on(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits after each of further tokens, (B, N) right-padded -> (B, N, V); the stream stays where it is."""
        held = ReadOnlyCache([(layer.keys, layer.values) for layer in self.cache.layers])
        positions = self.next_position[:, None] + torch.arange(ids.shape[1], device=ids.device)
        states = self.stack.embed(ids)
        if self.layer:
            states = self.stack.run(states, range(self.layer), positions, torch.cat([self.below, mask], 1), held)
        states = self.stack.run(states, range(self.layer, len(self.stack)), positions, torch.cat([self.above, mask], 1), held)
        return self.stack.head(self.stack.norm(states))

    def step(self, ids: Tensor) -> Tensor:
        """One more token for every row, (B,) -> logits (B, V)."""
        one = torch.ones_like(ids, dtype=torch.bool)[:, None]
        positions = self.next_position[:, None]
        states = self.stack.embed(ids[:, None])
        if self.layer:
            self.below = torch.cat([self.below, one], 1)
            states = self.stack.run(states, range(self.layer), positions, self.below, self.cache)
        self.above = torch.cat([self.above, one], 1)
        states = self.stack.run(states, range(self.layer, len(self.stack)), positions, self.above, self.cache)
        self.next_position = self.next_position + 1
        return self.stack.head(self.stack.norm(states))[:, 0]


def decode(*args: Any, **kwargs: Any) -> list[str]:
    """The texts of `write`."""
    return [written.text for written in write(*args, **kwargs)]


def write(logits: Tensor, step: Callable[[Tensor], Tensor], generation: Generation, tokenizer: Any,
          all_steps: bool = False, end_ids: tuple[int, ...] = ()) -> list[Decoded]:
    """Decodes one answer per row; arguments as of `steps`."""
    for chosen in steps(logits, step, generation, tokenizer, all_steps, end_ids):
        pass
    texts = tokenizer.batch_decode(chosen, skip_special_tokens=True)
    ended = [bool(ids) and ids[-1] in {*end_ids, tokenizer.eos_token_id} for ids in chosen]
    return [Decoded(_cut(text, generation.stop).strip(), ids[:-1] if end else ids, end)
            for text, ids, end in zip(texts, chosen, ended)]


def decode_pieces(logits: Tensor, step: Callable[[Tensor], Tensor], generation: Generation, tokenizer: Any,
                  end_ids: tuple[int, ...] = ()) -> Iterator[str]:
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
def steps(logits: Tensor, step: Callable[[Tensor], Tensor], generation: Generation, tokenizer: Any,
          all_steps: bool = False, end_ids: tuple[int, ...] = ()) -> Iterator[list[list[int]]]:
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


def _choose(logits: Tensor, chosen: list[list[int]], generation: Generation, barred: list[int],
            generator: torch.Generator) -> Tensor:
    """Next ids (B,) from logits (B, V) in float32."""
    if barred:
        logits[:, barred] = -torch.inf
    if generation.repetition_penalty != 1.0:
        for row, ids in enumerate(chosen):
            seen = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits.device)
            scores = logits[row, seen]
            logits[row, seen] = torch.where(scores > 0, scores / generation.repetition_penalty,
                                            scores * generation.repetition_penalty)
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
