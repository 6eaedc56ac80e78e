"""What the generated suites have in common: length in tokens, the suite's prompt and limits, sizes of the splits."""

from __future__ import annotations

from dataclasses import dataclass

from data.checks import check_split, integer_problems
from data.synthetic.tokens import HasTokenizer


@dataclass(kw_only=True, eq=False)
class GeneratedSuite:
    """Base of the generated suites. Its fields are keys of their YAML files.

    counter   backbone whose tokenizer counts
    instruction, template, max_new_tokens, stop, metrics  as the suite has them: defaults of section prompt, of section
              generation, and the scores of the table
    *_size    examples of the split; seed: examples depend on it
    """

    counter: HasTokenizer
    instruction: str
    template: str
    max_new_tokens: int
    stop: list[str]
    metrics: list[str]
    train_size: int = 1000
    validation_size: int = 100
    test_size: int = 500
    seed: int = 42

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each split."""
        return {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}

    def size_problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong size of `splits`, and for a wrong seed."""
        problems = []
        for split in splits:
            check_split(split)
            problems += integer_problems(f"{split}_size", self.sizes[split], 1, None, 100)
        return problems + integer_problems("seed", self.seed, 0, None, 42)
