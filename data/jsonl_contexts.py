"""The contexts of JSONL files, for data sets and text sources that ignore the files' questions and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from breviary.contract import Example
from data.checks import check_split
from data.jsonl import Jsonl


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

    def file_names(self, split: str) -> str:
        """The split's files, comma-separated, for messages."""
        return ", ".join(str(name) for name in self.files[split])
