"""Contexts that were read, each once for all the questions on it (evaluation, serving)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from breviary.contract import Tokens


def context_keys(prefix: Tokens, context: Tokens) -> list[bytes]:
    """What tells each row's context, with the prefix before it, from any other; pads play no part."""
    parts = [[ids[mask].cpu().numpy().tobytes() for ids, mask in zip(part.ids, part.mask)] for part in (prefix, context)]
    return [first + b"|" + own for first, own in zip(*parts)]


class KeptContexts:
    """What was made of contexts, found again by the token ids of prefix and context; each method keeps its own kind of thing.

    Keeps the `capacity` most recently used contexts. `reused` says for each row of the latest call whether its context had
    been read before.
    """

    def __init__(self, capacity: int = 32) -> None:
        self.capacity = capacity
        self.reused: list[bool] = []
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def found(self, prefix: Tokens, context: Tokens, read: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
        """What is kept of each row's context; `read` makes it, in order, for the rows that are named to it."""
        keys = context_keys(prefix, context)
        missing = list({key: b for b, key in reversed(list(enumerate(keys))) if key not in self._kept}.values())
        self.reused = [b not in missing for b in range(len(keys))]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if missing:
            found |= zip((keys[b] for b in missing), read(missing))
        for key in keys:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return [found[key] for key in keys]
