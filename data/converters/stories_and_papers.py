"""Converters of questions on whole texts: NarrativeQA, FairytaleQA, QuALITY, Qasper."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from data.converters.fields import (
    Converted,
    Skipped,
    converter,
    first_id,
    make_example,
    require,
    require_list,
    type_name,
)

ANSWERS = (
    "answer1",
    "answer4",
    "answer2",
    "answer3",
    "answer5",
    "answer6",
)  # the first of each annotator, then the others
OPTIONS = "ABCD"


@converter
def narrativeqa(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """NarrativeQA (arXiv 1712.07040): a row of qaps.csv with `context`, the summary or story of its document.

    {"document_id": str, "question": str, "answer1": str, "answer2": str, "context": str or None}; None, a story that
    could not be downloaded, is skipped. HTML pages are converted to text.
    """
    document = require(row, "document_id", str)
    question = require(row, "question", str)
    answers = [require(row, "answer1", str), require(row, "answer2", str)]
    if row.get("context") is None:
        yield Skipped("no story of that document")
    else:
        yield make_example(f"{document}-{number}", plain_text(require(row, "context", str)), question, answers)


def plain_text(page: str) -> str:
    """The text of an HTML page, without scripts and styles; any other text unchanged."""
    if "<html" not in page[:2000].lower():
        return page
    parser = _Text()
    parser.feed(page)
    parser.close()
    return "".join(parser.parts).strip()


class _Text(HTMLParser):
    """Collects the visible text."""

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
    """FairytaleQA (arXiv 2203.13947): a row of a story's questions, with the story's name and sections.

    {"story": str, "place": int, "sections": [str], "question": str, "answer1": str, ..., "answer6": str}; answers 1 to
    3 are from one annotator, 4 to 6 from the other.
    """
    context = "\n\n".join(require_list(row, "sections", str)).replace("\r\n", "\n").replace("\r", "\n")
    id = f"{require(row, 'story', str)}-{require(row, 'place', int)}"
    yield make_example(id, context, require(row, "question", str), [require(row, answer, str) for answer in ANSWERS])


@converter
def quality(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """QuALITY 1.0.1 (arXiv 2112.08608): an article and one writer's questions, files without HTML.

    {"set_unique_id": str, "article": str, "questions": [{"question": str, "options": [str x 4], "gold_label": 1..4}]};
    the options are appended to the question, and the answer is the option's text.
    """
    name, article = first_id(row, ("set_unique_id",), f"quality-{number}"), require(row, "article", str)
    for place, question_row in enumerate(require(row, "questions", list), 1):
        owner = f"question {place}"
        options = require_list(question_row, "options", str, owner)
        if len(options) != len(OPTIONS):
            raise ValueError(f"'options' of {owner} holds {len(options)} options; it must hold {len(OPTIONS)}")
        question = require(question_row, "question", str, owner).strip()
        if "gold_label" not in question_row:
            yield Skipped("no gold label (a test file with hidden answers)")
            continue
        gold = require(question_row, "gold_label", int, owner)
        if not 1 <= gold <= len(options):
            raise ValueError(f"'gold_label' of {owner} is {gold}; it must be a whole number in 1..{len(options)}")
        shown = "\n".join(f"({letter}) {option.strip()}" for letter, option in zip(OPTIONS, options))
        yield make_example(f"{name}_{place}", article, f"{question}\n{shown}", [options[gold - 1]])


@converter
def qasper(row: dict[str, Any], number: int) -> Iterator[Converted]:
    """Qasper (arXiv 2105.03011): a paper (title, abstract, sections) and its questions.

    {"title": str, "abstract": str, "full_text": [{"section_name": str or null, "paragraphs": [str]}],
     "qas": [{"question": str, "question_id": str, "answers": [{"answer": {"unanswerable": bool, "extractive_spans":
     [str], "yes_no": bool or null, "free_form_answer": str}}]}]}; answers have the official evaluation's wording.
    """
    parts = [require(row, "title", str), f"Abstract\n{require(row, 'abstract', str)}"]
    for place, section in enumerate(require(row, "full_text", list), 1):
        owner = f"section {place}"
        name = _section_name(section, owner)
        parts.append("\n".join([name, *require_list(section, "paragraphs", str, owner)]).strip())
    context = "\n\n".join(part for part in parts if part.strip())
    paper = first_id(row, ("paper",), f"qasper-{number}")
    for place, question_row in enumerate(require(row, "qas", list), 1):
        owner = f"question {place}"
        answers = [
            _answer_text(require(answer, "answer", dict, f"an answer of {owner}"), owner)
            for answer in require(question_row, "answers", list, owner)
        ]
        yield make_example(
            first_id(question_row, ("question_id",), f"{paper}-{place}"),
            context,
            require(question_row, "question", str, owner),
            answers,
        )


def _section_name(section: Any, owner: str) -> str:
    """The section's name, "" where it is null."""
    is_null = isinstance(section, dict) and section.get("section_name", "") is None
    return "" if is_null else require(section, "section_name", str, owner)


def _answer_text(answer: dict[str, Any], owner: str) -> str:
    """One annotator's answer; empty where it is missing."""
    owner = f"an answer of {owner}"
    if require(answer, "unanswerable", bool, owner):
        return "Unanswerable"
    spans = require_list(answer, "extractive_spans", str, owner)
    if spans:
        return ", ".join(span.strip() for span in spans)
    free = require(answer, "free_form_answer", str, owner)
    if free.strip() or answer.get("yes_no") is None:
        return free
    return "Yes" if require(answer, "yes_no", bool, owner) else "No"


def qasper_rows(value: Any) -> Iterator[Any]:
    """The papers of a file's one object, each with its key as "paper". Raises: ValueError for any other value."""
    if not isinstance(value, dict):
        raise ValueError(
            f"the file is {type_name(value)}; it must be one object of papers with their arXiv numbers as keys"
        )
    for number, paper in value.items():
        yield {"paper": number, **paper} if isinstance(paper, dict) else paper
