"""The texts of JSONL files, for data sets that are made of text alone: questions and answers are not looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from breviary.contract import Example
from data.jsonl import Jsonl
from data.splits import check_split


class Texts:
    """The contexts of one or several JSONL files a split (null = the split does not exist)."""

    def __init__(
        self,
        train: str | Sequence[str] | None,
        validation: str | Sequence[str] | None,
        test: str | Sequence[str] | None,
    ) -> None:
        given = {"train": train, "validation": validation, "test": test}
        self.files = {
            split: [names] if names is None or isinstance(names, str) else list(names) for split, names in given.items()
        }

    def problems(self, splits: Sequence[str]) -> list[str]:
        """What is wrong with the files of `splits`, one sentence each."""
        found = []
        for split in splits:
            check_split(split)
            for name in self.files[split]:
                found += Jsonl(name, name, name).problems([split])
        return found

    def there(self, split: str) -> bool:
        """Whether the split has files."""
        return self.files[split] not in ([], [None])

    def contexts(self, split: str) -> Iterator[Example]:
        """The first example of each distinct context of `split`. Raises ValueError as `Jsonl.examples` does."""
        seen = set()
        for name in self.files[split]:
            for example in Jsonl(name, name, name).examples(split):
                if example.context not in seen:
                    seen.add(example.context)
                    yield example

    def names(self, split: str) -> str:
        """The split's files, for messages."""
        return ", ".join(str(name) for name in self.files[split])
