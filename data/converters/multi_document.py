"""Converters of questions on passages with gold labels: NaturalQuestions, HotpotQA, 2WikiMultihopQA, MuSiQue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.converters.fields import (
    Converted,
    Skipped,
    converter,
    first_id,
    make_passage_example,
    require,
    require_list,
    type_name,
)

HIDDEN_ANSWER = Skipped("no answer in the row (a test file with hidden answers)")


@converter
def nq(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """NaturalQuestions in the format of lost-in-the-middle (arXiv 2307.03172).

    {"question": str, "answers": [str], "ctxs": [{"title": str, "text": str, "isgold": bool}, ...]}; the rows have no
    ids. The id is nq-NUMBER-goldPLACE: the row's number and the place of the first gold passage, both from 0.
    """
    passages = []
    for place, passage in enumerate(require(row, "ctxs", list), 1):
        owner = f"passage {place}"
        passages.append(
            {
                "title": require(passage, "title", str, owner),
                "text": require(passage, "text", str, owner),
                "is_gold": require(passage, "isgold", bool, owner),
            }
        )
    gold = [place for place, passage in enumerate(passages) if passage["is_gold"]]
    id = f"nq-{number}-gold{gold[0]}" if gold else f"nq-{number}"
    yield make_passage_example(id, passages, require(row, "question", str), require_list(row, "answers", str))


@converter
def hotpotqa(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """HotpotQA (arXiv 1809.09600), the official files or the Hugging Face hub's rows.

    {"_id": str, "question": str, "answer": str, "supporting_facts": [[title, sentence], ...],
     "context": [[title, [sentence, ...]], ...]}; the hub's rows have "id", supporting_facts {"title": [...], ...} and
    context {"title": [...], "sentences": [[...], ...]}. Paragraphs with supporting facts are gold.
    """
    yield _multihop(row, f"hotpotqa-{number}")


@converter
def two_wiki(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """2WikiMultihopQA (arXiv 2011.01060): fields as HotpotQA; "_id" is "_1" in the pandas format."""
    yield _multihop(row, f"2wikimultihopqa-{number}")


def _multihop(row: dict[str, Any], default_id: str) -> Converted:
    question, paragraphs = require(row, "question", str), _paragraphs(row)
    if "answer" not in row:
        return HIDDEN_ANSWER
    gold = _gold_titles(row)
    passages = [
        {"title": title, "text": " ".join(sentence.strip() for sentence in sentences), "is_gold": title in gold}
        for title, sentences in paragraphs
    ]
    return make_passage_example(
        first_id(row, ("_id", "id", "_1"), default_id), passages, question, [require(row, "answer", str)]
    )


def _paragraphs(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(title, sentences) of each paragraph, in either format."""
    if isinstance(row.get("context"), dict):
        titles = require_list(row["context"], "title", str, "'context'")
        texts = require_list(row["context"], "sentences", list, "'context'")
        if len(titles) != len(texts):
            raise ValueError(f"'context' has {len(titles)} titles but {len(texts)} lists of sentences")
        pairs = list(zip(titles, texts))
    else:
        pairs = require_list(row, "context", list)
    for place, pair in enumerate(pairs, 1):
        right = len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], list)
        if not right or not all(isinstance(sentence, str) for sentence in pair[1]):
            raise ValueError(f"paragraph {place} of 'context' is not a pair of a title and a list of sentences")
    return pairs


def _gold_titles(row: dict[str, Any]) -> set[str]:
    if isinstance(row.get("supporting_facts"), dict):
        return set(require_list(row["supporting_facts"], "title", str, "'supporting_facts'"))
    facts = require_list(row, "supporting_facts", list)
    for place, fact in enumerate(facts, 1):
        if not fact or not isinstance(fact[0], str):
            raise ValueError(f"item {place} of 'supporting_facts' does not begin with a title")
    return {fact[0] for fact in facts}


@converter
def musique(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """MuSiQue (arXiv 2108.00573): 20 paragraphs, the supporting ones gold. Unanswerable questions are skipped.

    {"id": str, "question": str, "answer": str, "answer_aliases": [str], "answerable": bool,
     "paragraphs": [{"title": str, "paragraph_text": str, "is_supporting": bool}, ...]}
    """
    passages, hidden = [], "answer" not in row
    for place, passage in enumerate(require(row, "paragraphs", list), 1):
        owner = f"paragraph {place}"
        passages.append(
            {
                "title": require(passage, "title", str, owner),
                "text": require(passage, "paragraph_text", str, owner),
                "is_gold": not hidden and require(passage, "is_supporting", bool, owner),
            }
        )
    question = require(row, "question", str)
    if hidden:
        yield HIDDEN_ANSWER
    elif row.get("answerable") is False:
        yield Skipped("unanswerable")
    else:
        aliases = require_list(row, "answer_aliases", str) if "answer_aliases" in row else []
        yield make_passage_example(
            first_id(row, ("id",), f"musique-{number}"), passages, question, [require(row, "answer", str), *aliases]
        )


def rows_of_columns(value: Any) -> Iterator[Any]:
    """Rows of a table in pandas' column format, {column: {row: value}}; any other object is itself the only row.

    Raises: ValueError where the columns have different rows.
    """
    if not isinstance(value, dict):
        raise ValueError(f"the file is {type_name(value)}; it must be a list of rows, lines of them, or columns")
    by_columns = value and all(isinstance(column, dict) for column in value.values())
    if not by_columns or "question" not in value:
        yield value
        return
    names = list(value["question"])
    for column, cells in value.items():
        if set(cells) != set(names):
            raise ValueError(
                f"the rows of column {column!r} differ from those of 'question' ({len(cells)} and {len(names)} rows)"
            )
    for name in names:
        yield {column: cells[name] for column, cells in value.items()}
