"""Question answering (qa_1, qa_2): questions of SQuAD or HotpotQA among paragraphs of other questions."""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from breviary.runtime.draws import seeded_rng, shuffled
from breviary.runtime.files import parse_json
from data.jsonl import Jsonl
from data.ruler.task import Draft
from data.synthetic.layout import Piece, join_pieces
from data.synthetic.words import sample

PREFIX = " Answer:"
SQUAD_PAGE = "https://rajpurkar.github.io/SQuAD-explorer"
FORMATS = (
    "SQuAD v2.0 (dev-v2.0.json), HotpotQA (hotpot_dev_distractor_v1.json), or our JSONL with documents (.jsonl, "
    ".jsonl.gz)"
)


@dataclass(frozen=True)
class Question:
    """A question, its answers, and numbers of paragraphs.

    own    paragraphs that belong to the question
    near   further ones of the same article; titles of gold paragraphs are not marked in them
    gold   those of `own` that the answer depends on
    """

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...]
    gold: tuple[int, ...]


@dataclass(frozen=True)
class Collection:
    """All questions of a file, in its order, and all distinct paragraphs, sorted."""

    questions: tuple[Question, ...]
    paragraphs: tuple[str, ...]


class DocumentQuestions:
    """qa_1, qa_2. Units: paragraphs; the question's own, then random others."""

    least: int = 1
    step: int = 10

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.most: int | None = len(collection.paragraphs)

    def draft(self, rng: random.Random, units: int, index: int) -> Draft:
        """See Task. Raises: ValueError where the file has no question of that index."""
        questions, paragraphs = self.collection.questions, self.collection.paragraphs
        if index >= len(questions):
            raise ValueError(
                f"dataset.documents has {len(questions)} questions, but example {index + 1} is needed; lower "
                "dataset.test_size (and train_size, validation_size, which take the questions after those of test)"
            )
        question = questions[index]
        chosen = [*question.own, *self._others(rng, question, units - len(question.own))]
        chosen = shuffled(seeded_rng("ruler qa", len(chosen)), chosen)
        pieces: list[Piece] = []
        for number, place in enumerate(chosen, 1):
            head = "\n\n" if number > 1 else ""
            text = paragraphs[place]
            pieces += [Piece(f"{head}Document {number}:\n"), Piece(text, _title(text), place in question.gold)]
        context, documents = join_pieces(pieces, "")
        return Draft(context, question.text, PREFIX, question.answers, documents)

    def _others(self, rng: random.Random, question: Question, count: int) -> list[int]:
        """Paragraphs of the same article; all of them and random others where more are wanted."""
        if count <= len(question.near):
            return sample(rng, question.near, max(count, 0))
        taken = {*question.own, *question.near}
        rest = [place for place in range(len(self.collection.paragraphs)) if place not in taken]
        return [*question.near, *sample(rng, rest, min(count - len(question.near), len(rest)))]


def _title(text: str) -> str:
    return text.split("\n")[0][:60]


def read_questions(name: str) -> Collection:
    """The questions of a file in one of FORMATS, read once a process for each version of the file.

    Raises: ValueError for another format.
    """
    return _read(name, Path(name).stat().st_mtime_ns)


@cache
def _read(name: str, modified_ns: int) -> Collection:
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _of_jsonl(name)
    opener = gzip.open if name.endswith(".gz") else open
    try:
        with opener(name, "rt", encoding="utf-8") as file:
            content = parse_json(file.read())
        return _of_squad(content) if isinstance(content, dict) else _of_hotpotqa(content)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"dataset.documents={name}: not read ({type(error).__name__}: {error}); it must be {FORMATS}"
        ) from error


def _of_squad(content: dict[str, Any]) -> Collection:
    paragraphs = sorted({paragraph["context"] for article in content["data"] for paragraph in article["paragraphs"]})
    places = {text: place for place, text in enumerate(paragraphs)}
    questions = []
    for article in content["data"]:
        article_places = [places[paragraph["context"]] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            own = places[paragraph["context"]]
            near = tuple(dict.fromkeys(place for place in article_places if place != own))
            questions += [
                Question(item["question"], tuple(a["text"] for a in item["answers"]), (own,), near, (own,))
                for item in paragraph["qas"]
                if not item["is_impossible"]
            ]
    return Collection(tuple(questions), tuple(paragraphs))


def _of_hotpotqa(content: Sequence[dict[str, Any]]) -> Collection:
    rows = []
    for item in content:
        gold = {title for title, _ in item["supporting_facts"]}
        texts = [(f"{title}\n{''.join(sentences)}", title in gold) for title, sentences in item["context"]]
        rows.append((item["question"], (item["answer"],), texts))
    return _of_rows(rows)


def _of_jsonl(name: str) -> Collection:
    rows = []
    for example in Jsonl(None, None, name).examples("test"):
        if not example.documents:
            raise ValueError(f"dataset.documents={name}: example {example.id} has no documents; it must be {FORMATS}")
        texts = [(f"{d.title}\n{example.context[d.start : d.end]}", d.is_gold) for d in example.documents]
        rows.append((example.question, example.answers, texts))
    return _of_rows(rows)


def _of_rows(rows: Sequence[tuple[str, tuple[str, ...], list[tuple[str, bool]]]]) -> Collection:
    """rows  (question, answers, [(paragraph, is gold), ...])"""
    paragraphs = sorted({text for _, _, texts in rows for text, _ in texts})
    places = {text: place for place, text in enumerate(paragraphs)}
    questions = []
    for question, answers, texts in rows:
        own = tuple(dict.fromkeys(places[text] for text, _ in texts))
        gold = tuple(dict.fromkeys(places[text] for text, is_gold in texts if is_gold))
        questions.append(Question(question, answers, own, (), gold))
    return Collection(tuple(questions), tuple(paragraphs))
