"""Key-value retrieval: the value of one key of a JSON object of random UUIDs.

Of Lost in the Middle (Liu et al. 2023, arXiv 2307.03172, section 3) and, with worked examples behind the object, of
HELMET (Yen et al. 2024, arXiv 2410.02694: json_kv).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from breviary.contract import Example
from breviary.runtime.draws import seeded_rng
from breviary.runtime.spelling import override
from data.checks import integer_problems, raise_problems
from data.synthetic.layout import Piece, join_pieces
from data.synthetic.suite import GeneratedSuite
from data.synthetic.tokens import TokenCounter, most_units
from data.synthetic.words import distinct, random_uuid, sample

MAX_EXAMPLES = 8
MIN_LENGTH = 256


@dataclass(kw_only=True, eq=False)
class KeyValues(GeneratedSuite):
    """Pairs of UUIDs, one on a line, of which the question names one key.

    pairs     of an object; None = as many as `length` holds
    length    tokens of the backbone's tokenizer for prompt and answer limit together; None = `pairs`
    position  position of the queried pair: 0 = the first, 1 = the last; None = random for each example
    worked    pairs of the same object that stand behind it as worked examples, after a repeated instruction
    Each pair is a document of an example, and the queried one is gold. Example i depends only on (seed, split,
    i), the number of pairs, position and worked examples.
    """

    pairs: int | None
    length: int | None
    position: float | None = None
    worked: int = 0

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument; sizes are checked for `splits` only."""
        problems = integer_problems("worked", self.worked, 0, MAX_EXAMPLES, 2)
        if (self.pairs is None) == (self.length is None):
            problems.append(
                f"dataset.pairs is {self.pairs!r}, dataset.length is {self.length!r}; one must be set and the other "
                f"null, for example {override('dataset.pairs', 75)}"
            )
        elif self.pairs is not None:
            least = self.worked + 1 if isinstance(self.worked, int) else 1
            problems += integer_problems("pairs", self.pairs, least, None, 75)
        else:
            problems += integer_problems("length", self.length, MIN_LENGTH, None, 4096)
        if self.position is not None and not (isinstance(self.position, (int, float)) and 0 <= self.position <= 1):
            problems.append(
                f"dataset.position is {self.position!r}; it must be in 0..1 or null, for example dataset.position=0.5"
            )
        return problems + self.size_problems(splits)

    def examples(self, split: str) -> list[Example]:
        """The examples of `split`.

        Raises: ValueError with the messages of `problems`, or where `length` holds too few pairs.
        """
        raise_problems(self.problems([split]))
        pairs = self._fitting_pairs(split) if self.pairs is None else self.pairs
        return [self._example(split, index, pairs) for index in range(self.sizes[split])]

    def _fitting_pairs(self, split: str) -> int:
        """Pairs of every example of a split that fit `length`. UUIDs differ in tokens: all examples are counted."""
        count, length = TokenCounter(self.counter.tokenizer()), self.length
        assert length is not None

        def is_short(index: int, pairs: int) -> bool:
            example = self._example(split, index, pairs)
            prompt = self.template.replace("{question}", example.question) + example.answer_prefix
            return count(self.instruction, example.context, prompt) + self.max_new_tokens <= length

        least = self.worked + 1
        pairs = most_units(lambda n: is_short(0, n), least) or 0
        for index in range(self.sizes[split]):
            while pairs >= least and not is_short(index, pairs):
                pairs -= 1
        if pairs < least:
            raise ValueError(
                f"dataset.length is {self.length}, which holds fewer than {least} pairs, for example "
                "dataset.length=4096"
            )
        return pairs

    def _example(self, split: str, index: int, pairs: int) -> Example:
        rng = seeded_rng("key values", self.seed, split, index)
        queried = self._place(rng, pairs)
        uuids = distinct(rng, random_uuid, 2 * pairs)
        records = list(zip(uuids[::2], uuids[1::2]))
        last = pairs - 1
        pieces = [Piece("JSON data:\n{")]
        for i, (key, value) in enumerate(records):
            pieces.append(Piece(f'"{key}": "{value}"', key, i == queried))
            pieces.append(Piece(",\n " if i < last else "}"))
        context, documents = join_pieces(pieces, "")
        others = sample(rng, [record for i, record in enumerate(records) if i != queried], self.worked)
        key, value = records[queried]
        context += self._worked(others)
        return Example(
            f"{split}-{self.seed}-{index}", context, key, (value,), documents, answer_prefix="\nCorresponding value:"
        )

    def _place(self, rng: random.Random, pairs: int) -> int:
        depth = rng.random()
        return min(int(depth * pairs), pairs - 1) if self.position is None else round(self.position * (pairs - 1))

    def _worked(self, records: list[tuple[str, str]]) -> str:
        if not records:
            return ""
        shown = "".join(f'\n\nKey: "{key}"\nCorresponding value: {value}' for key, value in records)
        return f"\n\n{self.instruction.strip()}{shown}"
