"""Variable tracking (vt): which names hold a value that is handed from one to the next, hidden in noise."""

from __future__ import annotations

import random
from collections.abc import Sequence

from breviary.contract import Document
from breviary.runtime.draws import random_below, seeded_rng
from data.ruler.needles import NOISE
from data.ruler.task import Draft
from data.synthetic.layout import Piece, behind, insert, join_pieces
from data.synthetic.tokens import TokenCounter, most_units
from data.synthetic.words import distinct, random_letters, sample

INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = "Find all variables that are assigned the value {value} in the text above."
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned the value "
    "{value}, they are: "
)
NAMES = 5
EXAMPLE_TOKENS, EXAMPLE_NEW_TOKENS = 500, 30  # the worked example is as long as a prompt of 500 tokens


class VariableTracking:
    """One chain of five names. Units: lines of noise.

    count     tokens, for the length of the worked example
    template  text between context and answer prefix
    seed      of the worked example; its names are drawn anew for each example
    """

    least: int = NAMES
    most: int | None = None
    step: int = 10

    def __init__(self, count: TokenCounter, template: str, seed: int) -> None:
        self.template = template
        rng = seeded_rng("ruler vt example", seed)
        self._value = _value(rng)
        names = ["AAA"] * NAMES

        def fits(lines: int) -> bool:
            text = self._worked(names, list(range(NAMES)), lines)
            return count(text) + EXAMPLE_NEW_TOKENS <= EXAMPLE_TOKENS

        self._lines = most_units(fits, NAMES) or NAMES
        self._places = sorted(sample(rng, range(self._lines), NAMES))

    def draft(self, rng: random.Random, units: int, index: int) -> Draft:
        """See Task."""
        names = distinct(rng, lambda rng: random_letters(rng, 5), NAMES)
        value = _value(rng)
        worked = self._worked(distinct(rng, lambda rng: random_letters(rng, 3), NAMES), self._places, self._lines)
        context, documents = _chain(names, value, sorted(sample(rng, range(units), NAMES)), units)
        context, documents = behind(f"{worked}\n\n{INSTRUCTION}", context, documents)
        return Draft(context, QUESTION.format(value=value), PREFIX.format(value=value), tuple(names), documents)

    def _worked(self, names: Sequence[str], places: Sequence[int], lines: int) -> str:
        """The worked example: prompt, answer prefix, and the names."""
        context, _ = _chain(names, self._value, places, lines)
        question = self.template.replace("{question}", QUESTION.format(value=self._value))
        return f"{INSTRUCTION}{context}{question}{PREFIX.format(value=self._value)} {' '.join(names)}"


def _value(rng: random.Random) -> str:
    return str(10000 + random_below(rng, 89999))


def _chain(names: Sequence[str], value: str, places: Sequence[int], lines: int) -> tuple[str, tuple[Document, ...]]:
    """Noise with the chain's statements before the lines `places`, and the statements as gold documents."""
    texts = [f"VAR {names[0]} = {value}"]
    texts += [f"VAR {name} = VAR {former} " for former, name in zip(names, names[1:])]
    statements = [Piece(text, name, is_gold=True) for text, name in zip(texts, names)]
    return join_pieces(insert([Piece(NOISE)] * lines, places, statements), "\n")
