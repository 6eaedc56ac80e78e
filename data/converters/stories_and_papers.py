"""Questions on whole texts: NarrativeQA, FairytaleQA, QuALITY, Qasper."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from data.converters.fields import Converted, Skipped, converter, example, identifier, kind_of, need, need_each

ANSWERS = ("answer1", "answer4", "answer2", "answer3", "answer5", "answer6")  # first of each annotator, then the others
OPTIONS = "ABCD"


@converter
def narrativeqa(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """NarrativeQA (arXiv 1712.07040): a line of qaps.csv with `context`, the summary or story of its document.

    {"document_id": str, "question": str, "answer1": str, "answer2": str, "context": str or None}; None is a story that
    is not there (its address may be dead), and skipped. Pages of HTML become their text.
    """
    document = need(row, "document_id", str)
    question = need(row, "question", str)
    answers = [need(row, "answer1", str), need(row, "answer2", str)]
    if row.get("context") is None:
        yield Skipped("no story of that document")
    else:
        yield example(f"{document}-{number}", plain_text(need(row, "context", str)), question, answers)


def plain_text(page: str) -> str:
    """The text of a page of HTML, without scripts and styles; any other text as it stands."""
    if "<html" not in page[:2000].lower():
        return page
    parser = _Text()
    parser.feed(page)
    parser.close()
    return "".join(parser.parts).strip()


class _Text(HTMLParser):
    """Collects what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style") and self.hidden > 0

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


@converter
def fairytaleqa(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """FairytaleQA (arXiv 2203.13947): a line of a story's questions with `story`, its name, and `sections`, its texts.

    {"story": str, "place": int, "sections": [str], "question": str, "answer1": str, ..., "answer6": str}; answers 1 to
    3 are one annotator's, 4 to 6 the other's.
    """
    context = "\n\n".join(need_each(row, "sections", str)).replace("\r\n", "\n").replace("\r", "\n")
    id = f"{need(row, 'story', str)}-{need(row, 'place', int)}"
    yield example(id, context, need(row, "question", str), [need(row, answer, str) for answer in ANSWERS])


@converter
def quality(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """QuALITY 1.0.1 (arXiv 2112.08608): an article and one writer's questions; options stand in the question.

    {"set_unique_id": str, "article": str, "questions": [{"question": str, "options": [str x 4], "gold_label": 1..4}]};
    the answer is the option's text. Take the files whose HTML is stripped.
    """
    name, article = identifier(row, ("set_unique_id",), f"quality-{number}"), need(row, "article", str)
    for place, asked in enumerate(need(row, "questions", list), 1):
        of = f"question {place}"
        options = need_each(asked, "options", str, of)
        if len(options) != len(OPTIONS):
            raise ValueError(f"'options' of {of} holds {len(options)} options; it must hold {len(OPTIONS)}")
        question = need(asked, "question", str, of).strip()
        if "gold_label" not in asked:
            yield Skipped("no gold label (a test file with hidden answers)")
            continue
        gold = need(asked, "gold_label", int, of)
        if not 1 <= gold <= len(options):
            raise ValueError(f"'gold_label' of {of} is {gold}; it must be a whole number in 1..{len(options)}")
        shown = "\n".join(f"({letter}) {option.strip()}" for letter, option in zip(OPTIONS, options))
        yield example(f"{name}_{place}", article, f"{question}\n{shown}", [options[gold - 1]])


@converter
def qasper(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """Qasper (arXiv 2105.03011): a paper (title, abstract, sections) and its questions.

    {"title": str, "abstract": str, "full_text": [{"section_name": str or null, "paragraphs": [str]}],
     "qas": [{"question": str, "question_id": str, "answers": [{"answer": {"unanswerable": bool, "extractive_spans":
     [str], "yes_no": bool or null, "free_form_answer": str}}]}]}; answers are worded as the official evaluation does.
    """
    parts = [need(row, "title", str), f"Abstract\n{need(row, 'abstract', str)}"]
    for place, section in enumerate(need(row, "full_text", list), 1):
        of = f"section {place}"
        name = need(section, "section_name", str, of) if need_field(section, "section_name", of) is not None else ""
        parts.append("\n".join([name, *need_each(section, "paragraphs", str, of)]).strip())
    context = "\n\n".join(part for part in parts if part.strip())
    paper = identifier(row, ("paper",), f"qasper-{number}")
    for place, asked in enumerate(need(row, "qas", list), 1):
        of = f"question {place}"
        answers = [
            _worded(need(answer, "answer", dict, f"an answer of {of}"), of)
            for answer in need(asked, "answers", list, of)
        ]
        yield example(
            identifier(asked, ("question_id",), f"{paper}-{place}"), context, need(asked, "question", str, of), answers
        )


def need_field(row: Any, field: str, of: str) -> Any:
    """`row[field]` of any kind, null too. Raises ValueError as `need`."""
    return row[field] if isinstance(row, dict) and row.get(field, "") is None else need(row, field, str, of)


def _worded(answer: dict[str, Any], of: str) -> str:
    """One annotator's answer; empty where it holds none."""
    of = f"an answer of {of}"
    if need(answer, "unanswerable", bool, of):
        return "Unanswerable"
    spans = need_each(answer, "extractive_spans", str, of)
    if spans:
        return ", ".join(span.strip() for span in spans)
    free = need(answer, "free_form_answer", str, of)
    if free.strip() or answer.get("yes_no") is None:
        return free
    return "Yes" if need(answer, "yes_no", bool, of) else "No"


def qasper_rows(value: Any) -> Iterator[Any]:
    """The papers of a file's one object, each with its key as "paper". Raises ValueError for another value."""
    if not isinstance(value, dict):
        raise ValueError(f"the file is {kind_of(value)}; it must be one object of papers, by their arXiv number")
    for number, paper in value.items():
        yield {"paper": number, **paper} if isinstance(paper, dict) else paper
