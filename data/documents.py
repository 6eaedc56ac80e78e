"""Documents of one length: cut out of sources, exactly n tokens each, and the same ones made easier and harder.

The length is exact, so that it explains nothing, and a document is text, so that every tokenizer reads the same span.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.draws import below, generator, shuffled
from data.text_sources import Source

AS_IS = "as_is"
_WORD = re.compile(r"\S+")
_ROOM = 16  # characters of text that are tokenised for each token wanted


@dataclass(frozen=True)
class TextDocument:
    """n tokens of text. `source` names where it was cut; `transform` says what was done to it."""

    doc_id: str
    domain: str
    source: str
    transform: str
    text: str


def held_out(source: str, share: float) -> bool:
    """Whether the source of this name is kept from training: a function of the name, true for about `share` of all."""
    return generator("held out", source).random() < share


def cut(text: str, tokenizer: Any, n: int, start: int = 0, most: int | None = None) -> Iterator[tuple[int, str]]:
    """Consecutive pieces of exactly n tokens, (first character, piece), each from the beginning of a word on.

    A piece tokenises to n tokens by itself; a place where it would not (the cut falls into a word that is then split in
    another way, or into a character) is left out. Ends where fewer than n tokens are left. Raises ValueError for n < 1
    and for what is no text.
    """
    if n < 1:
        raise ValueError(f"documents of {n} tokens: the length must be at least 1")
    if not isinstance(text, str) or "\x00" in text:
        raise ValueError(f"{str(text)[:40]!r} is no text: a document must be a string without NUL characters")
    given = 0
    while most is None or given < most:
        word = _WORD.search(text, start)
        if word is None:
            return
        encoded = tokenizer(
            text[word.start() : word.start() + _ROOM * n],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        if len(encoded["input_ids"]) < n:
            if word.start() + _ROOM * n >= len(text):
                return
            start = word.end()  # fewer tokens than characters allow: a run of one character
            continue
        end = word.start() + encoded["offset_mapping"][n - 1][1]
        piece = text[word.start() : end]
        again = tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if again == encoded["input_ids"][:n]:
            given += 1
            yield word.start(), piece
            start = end
        else:
            start = word.end()


def documents(
    domain: str, sources: Sequence[Source], tokenizer: Any, n: int, number: int, seed: int
) -> list[TextDocument]:
    """`number` documents of n tokens, from as many sources as there are: one of each in turn, in random order.

    Raises ValueError naming the domain where there are fewer: texts shorter than n, or empty, give none.
    """
    rng = generator("documents", domain, seed)
    # Not all from the beginning of their source.
    cuts = [
        (source.name, cut(source.text, tokenizer, n, below(rng, max(len(source.text) - 8 * n, 0) // 4 + 1)))
        for source in shuffled(rng, sources)
    ]
    found: list[TextDocument] = []
    seen: set[str] = set()
    while cuts and len(found) < number:
        left = []
        for name, pieces in cuts:
            text = next((text for _, text in pieces if text not in seen), None) if len(found) < number else None
            if text is not None:
                seen.add(text)
                found.append(TextDocument(f"{domain}/{len(found)}", domain, name, AS_IS, text))
                left.append((name, pieces))
        cuts = left
    if len(found) == number:
        return found
    raise ValueError(
        f"{domain}: only {len(found)} documents of {n} tokens can be cut from {len(sources)} texts; "
        f"{number} were asked: ask for fewer or shorter ones, or give more text"
    )


# ------------------------------------------------------------------ the entropy ladder


def rungs(repeats: Sequence[int], windows: Sequence[int], shares: Sequence[float]) -> list[str]:
    """Names of the ladder's rungs: repeat8 (the first 8 words again and again), shuffle4 (words shuffled within windows
    of 4; shuffle0: over the whole document), random0.25 (a quarter of the tokens drawn anew)."""
    return [*(f"repeat{k}" for k in repeats), *(f"shuffle{k}" for k in windows), *(f"random{p:g}" for p in shares)]


def transformed(document: TextDocument, rung: str, tokenizer: Any, n: int, seed: int) -> TextDocument | None:
    """The document on a rung of the ladder (see `rungs`), n tokens again; None where they cannot be had.

    What is missing to n tokens afterwards is filled by going on: the document is taken twice over before it is changed.
    Raises ValueError for a rung of no known kind.
    """
    match = re.fullmatch(r"([a-z]+)([\d.]+)", rung)
    kind, value = match.groups() if match else (rung, "")
    rng = generator("ladder", rung, document.doc_id, seed)
    text = f"{document.text} {document.text}"
    if kind == "repeat":
        first = document.text.split()[: int(value)]
        text = " ".join(first * (n * 2))
    elif kind == "shuffle":
        words = document.text.split()
        window = int(value) or len(words)
        text = " ".join(
            word
            for half in (words, words)
            for i in range(0, len(half), window)
            for word in shuffled(rng, half[i : i + window])
        )
    elif kind == "random":
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        allowed, share = _drawable(tokenizer), float(value)
        text = tokenizer.decode([allowed[below(rng, len(allowed))] if rng.random() < share else id for id in ids])
    else:
        raise ValueError(f"transform {rung!r} is no rung of the ladder; e.g. repeat8, shuffle4, random0.25")
    for _, piece in cut(text.replace("\x00", " "), tokenizer, n, most=1):
        return TextDocument(f"{document.doc_id}#{rung}", document.domain, document.source, rung, piece)
    return None


@functools.lru_cache(maxsize=4)
def _drawable(tokenizer: Any) -> list[int]:
    """Ids whose text is valid by itself: no special token, no part of a character."""
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[id] for id in range(len(tokenizer))])
    return [id for id, text in enumerate(texts) if id not in special and text and not {"\ufffd", "\x00"} & set(text)]
