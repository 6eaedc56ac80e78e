"""The data set of BABILong: stories of `worlds`, their facts scattered in free text."""

from __future__ import annotations

import random
from dataclasses import dataclass

from breviary.contract import Example
from breviary.runtime.draws import choose, random_below, seeded_rng
from data.babilong.worlds import TASKS, Story, StoryQuestion
from data.checks import integer_problems, raise_problems
from data.synthetic.haystack import haystack, haystack_problems
from data.synthetic.layout import Piece, insert, join_pieces
from data.synthetic.suite import GeneratedSuite
from data.synthetic.tokens import TokenCounter

PROMPT_TOKENS = 300  # taken from the nominal length for instruction, worked examples and question
MIN_SENTENCE = 10  # tokens; shorter sentences of the noise are skipped
MIN_LENGTH = 500


@dataclass(kw_only=True, eq=False)
class Babilong(GeneratedSuite):
    """One task of BABILong at one length.

    task      qa1 | qa2 | qa3 | qa4 | qa5
    length    nominal tokens of the backbone's tokenizer (BABILong: of GPT-2's): facts and noise take 300 fewer, which
              are for the prompt. 0 = facts alone
    noise     text file around the facts (BABILong: books of PG-19's test split); alice = the built-in public-domain
              book. Each example starts at a random sentence; the text is repeated where used up
    note      printed with the data set's name; None = nothing
    Facts are documents of an example, gold where the answer depends on them. Stories with more than a fact for 8 tokens
    are drawn again. Example i of a split depends only on (task, seed, split, i), the length and the noise.
    """

    task: str | None
    length: int
    noise: str | None
    note: str | None = None
    test_size: int = 100

    def problems(self, splits: list[str]) -> list[str]:
        """An error message for each wrong argument and missing file; sizes are checked for `splits` only."""
        if self.task not in TASKS:
            names = ", ".join(f"babilong_{name}" for name in TASKS)
            return [
                f"dataset.task is {self.task!r}; choose a task of BABILong with its prompt, such as "
                f"dataset=babilong_qa1; there are: {names}"
            ]
        problems = []
        if self.length != 0 or isinstance(self.length, bool):
            problems += integer_problems("length", self.length, MIN_LENGTH, None, 4000)
            problems += haystack_problems("noise", self.noise)
        return problems + self.size_problems(splits)

    def examples(self, split: str) -> list[Example]:
        """The examples of `split`. Raises: ValueError with the messages of `problems`."""
        raise_problems(self.problems([split]))
        noise = _Noise(TokenCounter(self.counter.tokenizer()), str(self.noise)) if self.length else None
        return [self._example(split, index, noise) for index in range(self.sizes[split])]

    def _example(self, split: str, index: int, noise: _Noise | None) -> Example:
        task = str(self.task)
        rng = seeded_rng("babilong", task, self.seed, split, index)
        budget = self.length - PROMPT_TOKENS
        while True:
            story = TASKS[task](rng)
            queried = choose(rng, story.questions)
            if noise is None or queried.after <= budget // 8:
                break
        facts = _facts(story, queried)
        pieces = facts
        if noise is not None:
            lines = [Piece(text) for text in noise.draw(rng, budget - noise.count(*(fact.text for fact in facts)))]
            pieces = insert(lines, sorted(random_below(rng, len(lines) + 1) for _ in facts), facts)
        context, documents = join_pieces(pieces, " ")
        return Example(f"{task}-{split}-{self.seed}-{index}", context, queried.text, (queried.answer,), documents)


def _facts(story: Story, queried: StoryQuestion) -> list[Piece]:
    """The statements before the question, earlier questions left out."""
    facts = enumerate(story.statements[: queried.after])
    return [Piece(text, f"fact {index + 1}", index in queried.support) for index, text in facts]


class _Noise:
    """Sentences of a text with their tokens, counted once."""

    def __init__(self, count: TokenCounter, name: str) -> None:
        self.count = count
        sentences = haystack(name).sentences()
        lengths = count.each([f" {sentence}" for sentence in sentences])
        kept = [(text, length) for text, length in zip(sentences, lengths) if length >= MIN_SENTENCE]
        self.sentences = [text for text, _ in kept]
        self.lengths = [length for _, length in kept]

    def draw(self, rng: random.Random, tokens: int) -> list[str]:
        """Successive sentences of `tokens` tokens from a random one on; the last one is cut to fit."""
        at = random_below(rng, len(self.sentences))
        chosen: list[str] = []
        while tokens > 0:
            sentence, length = self.sentences[at], self.lengths[at]
            chosen.append(sentence if length <= tokens else self.count.first(f" {sentence}", tokens).strip())
            tokens -= length
            at = (at + 1) % len(self.sentences)
        return chosen
