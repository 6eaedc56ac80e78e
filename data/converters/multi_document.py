"""Questions on passages with gold labels: NaturalQuestions, HotpotQA, 2WikiMultihopQA, MuSiQue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.converters.fields import Converted, Skipped, converter, identifier, kind_of, need, need_each, passage_example

HIDDEN = Skipped("no answer in the row (a test file with hidden answers)")


@converter
def nq(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """NaturalQuestions as lost-in-the-middle has it (arXiv 2307.03172): question, answers, ctxs.

    {"question": str, "answers": [str], "ctxs": [{"title": str, "text": str, "isgold": bool}, ...]}; the rows have no
    ids, so it is the row's number and, from 0, the place of the first gold passage.
    """
    passages = []
    for place, passage in enumerate(need(row, "ctxs", list), 1):
        of = f"passage {place}"
        passages.append(
            {
                "title": need(passage, "title", str, of),
                "text": need(passage, "text", str, of),
                "is_gold": need(passage, "isgold", bool, of),
            }
        )
    gold = [place for place, passage in enumerate(passages) if passage["is_gold"]]
    id = f"nq-{number}-gold{gold[0]}" if gold else f"nq-{number}"
    yield passage_example(id, passages, need(row, "question", str), need_each(row, "answers", str))


@converter
def hotpotqa(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """HotpotQA (arXiv 1809.09600), the official form or the hub's.

    {"_id": str, "question": str, "answer": str, "supporting_facts": [[title, sentence], ...],
     "context": [[title, [sentence, ...]], ...]}; the hub has "id", supporting_facts {"title": [...], ...} and
    context {"title": [...], "sentences": [[...], ...]}. Gold are the paragraphs of supporting facts.
    """
    yield _multihop(row, f"hotpotqa-{number}")


@converter
def two_wiki(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """2WikiMultihopQA (arXiv 2011.01060): HotpotQA's fields and others; "_id" is "_1" in the pandas form."""
    yield _multihop(row, f"2wikimultihopqa-{number}")


def _multihop(row: dict[str, Any], otherwise: str) -> Converted:
    question, paragraphs = need(row, "question", str), _paragraphs(row)
    if "answer" not in row:
        return HIDDEN
    gold = _gold_titles(row)
    passages = [
        {"title": title, "text": " ".join(sentence.strip() for sentence in sentences), "is_gold": title in gold}
        for title, sentences in paragraphs
    ]
    return passage_example(
        identifier(row, ("_id", "id", "_1"), otherwise), passages, question, [need(row, "answer", str)]
    )


def _paragraphs(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(title, sentences) of each paragraph, from either form."""
    if isinstance(row.get("context"), dict):
        titles = need_each(row["context"], "title", str, "'context'")
        texts = need_each(row["context"], "sentences", list, "'context'")
        if len(titles) != len(texts):
            raise ValueError(f"'context' has {len(titles)} titles and lists of sentences for {len(texts)} paragraphs")
        pairs = list(zip(titles, texts))
    else:
        pairs = need_each(row, "context", list)
    for place, pair in enumerate(pairs, 1):
        right = len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], list)
        if not right or not all(isinstance(sentence, str) for sentence in pair[1]):
            raise ValueError(f"paragraph {place} of 'context' is no pair of a title and a list of sentences")
    return pairs


def _gold_titles(row: dict[str, Any]) -> set[str]:
    if isinstance(row.get("supporting_facts"), dict):
        return set(need_each(row["supporting_facts"], "title", str, "'supporting_facts'"))
    facts = need_each(row, "supporting_facts", list)
    for place, fact in enumerate(facts, 1):
        if not fact or not isinstance(fact[0], str):
            raise ValueError(f"item {place} of 'supporting_facts' does not begin with a title")
    return {fact[0] for fact in facts}


@converter
def musique(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """MuSiQue (arXiv 2108.00573): 20 paragraphs, the supporting ones gold; the full version's unanswerable are skipped.

    {"id": str, "question": str, "answer": str, "answer_aliases": [str], "answerable": bool,
     "paragraphs": [{"title": str, "paragraph_text": str, "is_supporting": bool}, ...]}
    """
    passages, hidden = [], "answer" not in row
    for place, passage in enumerate(need(row, "paragraphs", list), 1):
        of = f"paragraph {place}"
        passages.append(
            {
                "title": need(passage, "title", str, of),
                "text": need(passage, "paragraph_text", str, of),
                "is_gold": not hidden and need(passage, "is_supporting", bool, of),
            }
        )
    question = need(row, "question", str)
    if hidden:
        yield HIDDEN
    elif row.get("answerable") is False:
        yield Skipped("unanswerable")
    else:
        aliases = need_each(row, "answer_aliases", str) if "answer_aliases" in row else []
        yield passage_example(
            identifier(row, ("id",), f"musique-{number}"), passages, question, [need(row, "answer", str), *aliases]
        )


def pivoted(value: Any) -> Iterator[Any]:
    """Rows of a table that pandas wrote by columns, {column: {row: value}}; any other object is itself the one row.

    Raises ValueError where the columns have different rows.
    """
    if not isinstance(value, dict):
        raise ValueError(f"the file is {kind_of(value)}; it must be a list of rows, lines of them, or columns")
    by_columns = value and all(isinstance(column, dict) for column in value.values())
    if not by_columns or "question" not in value:
        yield value
        return
    names = list(value["question"])
    for column, cells in value.items():
        if set(cells) != set(names):
            raise ValueError(f"column {column!r} has other rows than 'question' ({len(cells)} and {len(names)})")
    for name in names:
        yield {column: cells[name] for column, cells in value.items()}
