"""The contexts of JSONL files, for data sets and text sources that ignore the files' questions and answers.

Data sets that draw their own examples from such contexts leave out what a later split holds (train < validation <
test). A document is the same where its title is, or its text up to white space; a context without documents is one
document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from breviary.contract import Document, Example
from data.checks import SPLITS, check_split
from data.jsonl import Jsonl

Key = tuple[str, str]  # ("title" or "text", the title or the text)


class JsonlContexts:
    """The distinct contexts of one or several JSONL files per split (null = the split does not exist)."""

    def __init__(
        self,
        train: str | Sequence[str] | None,
        validation: str | Sequence[str] | None,
        test: str | Sequence[str] | None,
    ) -> None:
        splits = {"train": train, "validation": validation, "test": test}
        self.files = {
            split: [names] if names is None or isinstance(names, str) else list(names)
            for split, names in splits.items()
        }

    def problems(self, splits: Sequence[str]) -> list[str]:
        """An error message for each file of `splits` that cannot be used."""
        problems = []
        for split in splits:
            check_split(split)
            for name in self.files[split]:
                problems += Jsonl(name, name, name).problems([split])
        return problems

    def problems_with_later(self, splits: Sequence[str]) -> list[str]:
        """As `problems`, of `splits` and of the later splits whose documents are left out of them."""
        for split in splits:
            check_split(split)
        later = {other for split in splits for other in self.later_splits(split)}
        return self.problems([split for split in SPLITS if split in splits or split in later])

    def has_split(self, split: str) -> bool:
        """Whether the split has files."""
        return self.files[split] not in ([], [None])

    def examples(self, split: str) -> Iterator[Example]:
        """The first example of each distinct context of `split`. Raises: ValueError as `Jsonl.examples`."""
        seen = set()
        for name in self.files[split]:
            for example in Jsonl(name, name, name).examples(split):
                if example.context not in seen:
                    seen.add(example.context)
                    yield example

    def later_splits(self, split: str) -> list[str]:
        """The splits with files whose documents are left out of `split`."""
        return [later for later in SPLITS[SPLITS.index(split) + 1 :] if self.has_split(later)]

    def held_by_later_splits(self, split: str) -> set[Key]:
        """Titles and texts of every document and context of the later splits, for `remaining_documents`."""
        return {
            key
            for later in self.later_splits(split)
            for example in self.examples(later)
            for document in (Document("", 0, len(example.context), False), *example.documents)
            for key in _keys(example, document)
        }

    def file_names(self, split: str) -> str:
        """The split's files, comma-separated, for messages."""
        return ", ".join(str(name) for name in self.files[split])


def documents_of(example: Example) -> tuple[Document, ...]:
    """The documents of a context; the whole context, without a title, where it names none."""
    return example.documents or (Document("", 0, len(example.context), False),)


def remaining_documents(example: Example, held: set[Key]) -> list[Document]:
    """The documents of a context that later splits do not hold; none where they hold the context itself."""
    if held & _keys(example, Document("", 0, len(example.context), False)):
        return []
    return [document for document in documents_of(example) if not held & _keys(example, document)]


def remaining_texts(example: Example, held: set[Key]) -> list[str]:
    """The stretches of a context between the documents that later splits hold; the context where they hold none."""
    remaining = remaining_documents(example, held)
    if len(remaining) == len(documents_of(example)):
        return [example.context]
    texts: list[str] = []
    start = end = 0  # of the stretch; it begins where the last document that is left out ends
    for document in documents_of(example):
        if document in remaining:
            end = document.end
            continue
        texts += [example.context[start:end]] if end > start else []
        start = end = document.end
    return texts + ([example.context[start:end]] if end > start else [])


def _keys(example: Example, document: Document) -> set[Key]:
    text = " ".join(example.context[document.start : document.end].split())
    title = document.title.strip()
    return {("text", text), ("title", title)} if title else {("text", text)}
