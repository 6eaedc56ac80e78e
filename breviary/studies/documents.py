"""Documents of exactly n tokens, cut out of longer texts, and copies of them with lower or higher entropy.

The length is exact, so that length explains no difference between documents. A document is stored as text, so that
every tokenizer sees the same characters.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from breviary.runtime.draws import random_below, seeded_rng, shuffled

AS_IS = "as_is"
_WORD = re.compile(r"\S+")
_CHARACTERS_PER_TOKEN = 16  # upper estimate: characters that are tokenised for each token needed


class Source(Protocol):
    """A text and its name. Documents of equal names belong to one side of a split."""

    @property
    def name(self) -> str:
        """What the text is called."""

    @property
    def text(self) -> str:
        """The text."""


@dataclass(frozen=True)
class TextDocument:
    """n tokens of text.

    source     name of the text it was cut from
    transform  AS_IS, or the rung of the entropy ladder (see `rung_names`)
    """

    doc_id: str
    domain: str
    source: str
    transform: str
    text: str


def is_held_out(source: str, share: float) -> bool:
    """Whether the source is excluded from training. Depends on its name only; True for about `share` of all names."""
    return seeded_rng("held out", source).random() < share


def exact_pieces(
    text: str, tokenizer: Any, n: int, start: int = 0, limit: int | None = None
) -> Iterator[tuple[int, str]]:
    """Consecutive pieces of exactly n tokens as (first character, piece), each starting at the beginning of a word.

    A piece tokenises to n tokens by itself. A cut that would change the tokens (inside a character or a word) is
    skipped.
    Ends after `limit` pieces, or where fewer than n tokens remain.
    Raises: ValueError for n < 1, for a value that is not a string, and for NUL characters.
    """
    if n < 1:
        raise ValueError(f"documents of {n} tokens: the length must be at least 1")
    if not isinstance(text, str) or "\x00" in text:
        raise ValueError(f"{str(text)[:40]!r} is no text: a document must be a string without NUL characters")
    count = 0
    while limit is None or count < limit:
        word = _WORD.search(text, start)
        if word is None:
            return
        encoded = tokenizer(
            text[word.start() : word.start() + _CHARACTERS_PER_TOKEN * n],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        if len(encoded["input_ids"]) < n:
            if word.start() + _CHARACTERS_PER_TOKEN * n >= len(text):
                return
            start = word.end()  # more characters per token than estimated: a run of one character
            continue
        end = word.start() + encoded["offset_mapping"][n - 1][1]
        piece = text[word.start() : end]
        again = tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if again == encoded["input_ids"][:n]:
            count += 1
            yield word.start(), piece
            start = end
        else:
            start = word.end()


def cut_documents(
    domain: str, sources: Sequence[Source], tokenizer: Any, n: int, number: int, seed: int
) -> list[TextDocument]:
    """`number` documents of n tokens, one of each source in turn, sources in random order.

    Raises: ValueError with the domain's name where the sources hold fewer documents.
    """
    rng = seeded_rng("documents", domain, seed)
    # The first cut starts at a random place in the first quarter of the text, so that not all are beginnings.
    remaining = [
        (source.name, exact_pieces(source.text, tokenizer, n, _random_start(rng, source.text, n)))
        for source in shuffled(rng, sources)
    ]
    documents: list[TextDocument] = []
    seen: set[str] = set()
    while remaining and len(documents) < number:
        not_exhausted = []
        for name, pieces in remaining:
            text = next((text for _, text in pieces if text not in seen), None) if len(documents) < number else None
            if text is not None:
                seen.add(text)
                documents.append(TextDocument(f"{domain}/{len(documents)}", domain, name, AS_IS, text))
                not_exhausted.append((name, pieces))
        remaining = not_exhausted
    if len(documents) == number:
        return documents
    raise ValueError(
        f"{domain}: only {len(documents)} documents of {n} tokens can be cut from {len(sources)} texts, but {number} "
        "are required; request fewer or shorter documents, or add texts"
    )


def _random_start(rng: Any, text: str, n: int) -> int:
    return random_below(rng, max(len(text) - 8 * n, 0) // 4 + 1)


# ------------------------------------------------------------------ the entropy ladder


def rung_names(repeats: Sequence[int], windows: Sequence[int], shares: Sequence[float]) -> list[str]:
    """Names of the entropy ladder's rungs, in this order:

    repeat8     the first 8 words, repeated
    shuffle4    words shuffled within windows of 4; shuffle0: over the whole document
    random0.25  a quarter of the tokens replaced by random ones
    """
    return [*(f"repeat{k}" for k in repeats), *(f"shuffle{k}" for k in windows), *(f"random{p:g}" for p in shares)]


def apply_rung(document: TextDocument, rung: str, tokenizer: Any, n: int, seed: int) -> TextDocument | None:
    """The document transformed as `rung` (see `rung_names`), again of n tokens; None where no such cut exists.

    The document is doubled before it is transformed, so that enough text for n tokens remains.
    Raises: ValueError for an unknown rung.
    """
    match = re.fullmatch(r"([a-z]+)([\d.]+)", rung)
    kind, value = match.groups() if match else (rung, "")
    rng = seeded_rng("ladder", rung, document.doc_id, seed)
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
        allowed, share = _ids_of_valid_text(tokenizer), float(value)
        ids = [allowed[random_below(rng, len(allowed))] if rng.random() < share else id for id in ids]
        text = tokenizer.decode(ids)
    else:
        raise ValueError(
            f"transform {rung!r} is no rung of the entropy ladder; for example repeat8, shuffle4, random0.25"
        )
    for _, piece in exact_pieces(text.replace("\x00", " "), tokenizer, n, limit=1):
        return TextDocument(f"{document.doc_id}#{rung}", document.domain, document.source, rung, piece)
    return None


@functools.lru_cache(maxsize=4)
def _ids_of_valid_text(tokenizer: Any) -> list[int]:
    """Ids whose text is valid by itself: no special token, no part of a character."""
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[id] for id in range(len(tokenizer))])
    return [id for id, text in enumerate(texts) if id not in special and text and not {"\ufffd", "\x00"} & set(text)]
