"""The common JSONL format: loading, selection of passages, and every error message."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data.jsonl import Jsonl, draw_passages, join_passages

ROOT = Path(__file__).resolve().parents[3]
ROW = {"id": "a", "context": "The sky is blue.", "question": "What colour is the sky?", "answers": ["blue", "azure"]}


def passages(n: int, gold: tuple[int, ...] = (0,)) -> list[dict]:
    return [{"title": f"T{i}", "text": f"text of {i}.", "is_gold": i in gold} for i in range(n)]


def row(**changes) -> dict:
    return {**ROW, **changes}


def write(path: Path, rows: list) -> str:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def read(tmp_path: Path, rows: list, **keywords) -> list:
    return Jsonl(write(tmp_path / "train.jsonl", rows), None, None, **keywords).examples("train")


def error(tmp_path: Path, rows: list, **keywords) -> str:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, rows, **keywords)
    message = str(caught.value)
    assert message.startswith("dataset.train: ") and str(tmp_path / "train.jsonl") in message
    return message


def test_loads_one_object_per_line(tmp_path):
    [example] = read(tmp_path, [ROW])
    assert (example.id, example.context, example.question) == ("a", ROW["context"], ROW["question"])
    assert example.answers == ("blue", "azure") and example.documents == ()


def test_a_compressed_context_is_optional(tmp_path):
    rows = [row(id="a"), row(id="b", compressed_context=""), row(id="c", compressed_context="short")]
    assert [example.compressed_context for example in read(tmp_path, rows)] == [None, "", "short"]


def test_answer_prefix_and_choices_are_optional(tmp_path):
    chosen = row(id="b", answer_prefix=" Answer:", choices=["red", "blue"], answers="blue")
    plain, empty, example = read(tmp_path, [ROW, row(id="c", answer_prefix=None, choices=None), chosen])
    assert (plain.answer_prefix, plain.choices) == (empty.answer_prefix, empty.choices) == ("", ())
    assert (example.answer_prefix, example.choices) == (" Answer:", ("red", "blue"))


def test_plain_and_gzipped_files_agree(tmp_path):
    rows = [row(id=str(i), context=f"Größe {i}") for i in range(3)]
    plain = write(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    data = Jsonl(plain, str(packed), None)
    assert data.examples("train") == data.examples("validation")
    assert data.examples("train")[2].context == "Größe 2"


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_ignored(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n" + json.dumps(row(id="b")).encode())
    assert [e.id for e in Jsonl(str(path), None, None).examples("train")] == ["a", "b"]


def test_a_missing_id_is_the_line_number(tmp_path):
    without = {k: v for k, v in ROW.items() if k != "id"}
    assert [e.id for e in read(tmp_path, [without, "", without, row(id=7)])] == ["line-1", "line-3", "7"]


def test_answers_may_be_one_string_and_context_may_be_empty(tmp_path):
    [example] = read(tmp_path, [row(answers="blue", context="")])
    assert example.answers == ("blue",) and example.context == ""


def test_limits_select_the_first_examples_and_later_lines_are_not_read(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(id=str(i)) for i in range(5)] + ["not json"])
    data = Jsonl(path, path, path, train_limit=2, test_limit=5)
    assert [e.id for e in data.examples("train")] == ["0", "1"]
    assert len(data.examples("test")) == 5
    with pytest.raises(ValueError, match="line 6: not JSON"):
        data.examples("validation")


def test_spans_of_passages_in_the_common_layout(tmp_path):
    documents = passages(3, gold=(1,))
    context = (
        "Document [1](Title: T0) text of 0.\n\nDocument [2](Title: T1) text of 1.\n\nDocument [3](Title: T2) text of 2."
    )
    [example] = read(tmp_path, [row(context=context, documents=documents)])
    assert [example.context[d.start : d.end] for d in example.documents] == [d["text"] for d in documents]
    assert [d.title for d in example.documents] == ["T0", "T1", "T2"]
    assert [d.is_gold for d in example.documents] == [False, True, False]


def test_spans_in_another_layout_are_searched_in_order(tmp_path):
    documents = [{"title": "", "text": text, "is_gold": False} for text in ("same", "other", "same")]
    [example] = read(tmp_path, [row(context="same | other | same", documents=documents)])
    assert [(d.start, d.end) for d in example.documents] == [(0, 4), (7, 12), (15, 19)]


def test_a_passage_that_is_not_in_the_context_is_an_error(tmp_path):
    documents = [{"title": "", "text": text, "is_gold": False} for text in ("two", "one")]
    assert "line 1: the text of document 2 is not in 'context'" in error(
        tmp_path, [row(context="one two", documents=documents)]
    )


def test_max_documents_keeps_gold_and_adds_distractors(tmp_path):
    [example] = read(tmp_path, [row(documents=passages(20, gold=(4, 9)))], max_documents=5)
    assert len(example.documents) == 5
    assert sorted(d.title for d in example.documents if d.is_gold) == ["T4", "T9"]
    assert [example.context[d.start : d.end] for d in example.documents] == [
        f"text of {d.title[1:]}." for d in example.documents
    ]
    assert example.context.startswith(f"Document [1](Title: {example.documents[0].title}) text of ")
    assert example.context.count("\n\n") == 4 and "Document [5](Title: " in example.context


@pytest.mark.parametrize(
    ("available", "gold", "requested", "number"), [(3, (0,), 10, 3), (6, (0, 1, 2), 2, 3), (6, (), 4, 4)]
)
def test_number_of_drawn_passages(available, gold, requested, number):
    drawn = draw_passages("id", passages(available, gold), requested)
    assert len(drawn) == number
    assert {p["title"] for p in drawn} >= {f"T{i}" for i in gold}


def test_gold_is_at_every_place_and_every_distractor_is_used():
    places, used = Counter(), Counter()
    for i in range(2000):
        drawn = draw_passages(f"example-{i}", passages(10), 5)
        places[[p["is_gold"] for p in drawn].index(True)] += 1
        used.update(p["title"] for p in drawn if not p["is_gold"])
    # 2000/5 = 400 per place (standard deviation 18), 2000*4/9 = 889 per distractor (22); tolerance 5 deviations
    assert set(places) == set(range(5)) and all(abs(n - 400) < 90 for n in places.values())
    assert len(used) == 9 and all(abs(n - 889) < 111 for n in used.values())


def test_drawn_passages_are_equal_in_another_process():
    code = (
        "from data.jsonl import draw_passages\n"
        "ps = [{'title': str(i), 'text': '', 'is_gold': i == 0} for i in range(20)]\n"
        "print([[p['title'] for p in draw_passages(f'nq-{n}', ps, 5)] for n in range(20)])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = [[p["title"][1:] for p in draw_passages(f"nq-{n}", passages(20), 5)] for n in range(20)]
    assert output == f"{expected}\n"


def test_drawn_passages_never_change():
    """Published results depend on this selection and order."""
    assert [p["title"] for p in draw_passages("nq-0-gold4", passages(20, gold=(4,)), 5)] == GOLDEN_DRAW


GOLDEN_DRAW = ["T12", "T9", "T4", "T6", "T3"]


def test_no_passages_are_joined_to_an_empty_context():
    assert join_passages([]) == ("", [])


def test_max_documents_without_documents_warns(tmp_path):
    with pytest.warns(UserWarning, match="dataset.max_documents=5 is ignored"):
        [example] = read(tmp_path, [ROW], max_documents=5)
    assert example.context == ROW["context"]


BAD_LINES = [
    ("{'id': 1}", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
    ("[1, 2]", "a JSON list; it must be an object"),
    ("{}", "the fields 'context', 'question', 'answers' are missing (fields: none)"),
    ({"context": "c", "q": "?"}, "the fields 'question', 'answers' are missing (fields: 'context', 'q')"),
    (
        row(context=3, answers=[]),
        "'context' is number; it must be a string; 'answers' is an empty list; it must hold at least one string",
    ),
    ({"context": "c", "answers": ["x"]}, "the field 'question' is missing (fields: 'context', 'answers')"),
    (
        {"context": "c", "question": "q", "answer": "x"},
        "the field 'answers' is missing (fields: 'context', 'question', 'answer')",
    ),
    (row(context=["c"]), "'context' is list; it must be a string"),
    (row(question=3), "'question' is number; it must be a string"),
    (row(question=" \n"), "'question' is empty; it must hold a question"),
    (row(id=None), "'id' is null; it must be a string or a whole number"),
    (row(id=True), "'id' is boolean; it must be a string or a whole number"),
    (row(answers=[]), "'answers' is an empty list; it must hold at least one string"),
    (row(answers={"text": ["x"]}), "'answers' is object; it must be a list of strings, or one string"),
    (row(answers=["x", None]), "'answers' holds null; it must hold strings only"),
    (row(answers=["x", " "]), "'answers' holds an empty string; every answer must have words"),
    (row(answers=""), "'answers' holds an empty string; every answer must have words"),
    (row(compressed_context=["x"]), "'compressed_context' is list; it must be a string"),
    (row(answer_prefix=3), "'answer_prefix' is number; it must be a string"),
    (row(choices="blue"), '\'choices\' is string; it must be a list of 2 or more options, for example ["yes", "no"]'),
    (
        row(choices=["blue"]),
        '\'choices\' is a list of fewer than 2; it must be a list of 2 or more options, for example ["yes", "no"]',
    ),
    (row(choices=["blue", None]), "'choices' holds null; every option must be a string with words"),
    (row(choices=["blue", " "]), "'choices' holds an empty string; every option must be a string with words"),
    (row(choices=["blue", "red", "red"]), "'choices' holds 'red' more than once; options must differ"),
    (
        row(choices=["Blue", "red"]),
        "none of 'answers' is one of 'choices'; the right option must be an answer, verbatim",
    ),
    (row(documents={"title": "t"}), "'documents' is object; it must be a list of objects"),
    (row(documents=["text"]), "document 1 is string; it must be an object"),
    (row(documents=[{"text": "x", "is_gold": True}]), "'title' of document 1 is missing; it must be a string"),
    (
        row(documents=[{"title": "t", "text": 1, "is_gold": True}]),
        "'text' of document 1 is number; it must be a string",
    ),
    (
        row(documents=[{"title": "t", "text": "x", "is_gold": 1}]),
        "'is_gold' of document 1 is number; it must be true or false",
    ),
]


@pytest.mark.parametrize(("line", "problem"), BAD_LINES)
def test_a_bad_line_is_reported_with_the_expected_format(tmp_path, line, problem):
    message = error(tmp_path, [row(id="fine"), line])
    assert f"1 bad line in {tmp_path / 'train.jsonl'}\n  line 2: {problem}\n" in message
    assert 'Each line must be {"id": str (optional), "context": str' in message


def test_null_documents_are_allowed(tmp_path):
    assert read(tmp_path, [row(documents=None)])[0].documents == ()


def test_duplicate_ids_are_reported_with_both_lines(tmp_path):
    assert "line 3: the id 'a' is already that of line 1" in error(tmp_path, [ROW, row(id="b"), ROW])


def test_all_bad_lines_are_reported_together(tmp_path):
    message = error(tmp_path, [row(question="")] * 14 + [row(id="fine")])
    assert "14 bad lines in" in message and "... and 4 more" in message
    assert [f"  line {n}: " in message for n in range(1, 15)] == [True] * 10 + [False] * 4


def test_a_file_of_blank_lines_is_an_error(tmp_path):
    assert "holds blank lines only" in error(tmp_path, ["", "  "])


def test_problems_of_files_and_numbers_are_reported_together(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    data = Jsonl(None, "nowhere.jsonl", str(empty), max_documents=0, validation_limit=0, test_limit=2.5)
    problems = data.problems(["train", "validation", "test"])
    expected = [
        "dataset.train is null, so there is no train split (given: validation, test)",
        "dataset.validation is 'nowhere.jsonl', which is not a file",
        "dataset.validation_limit is 0; it must be a whole number of 1 or more",
        f"dataset.test: {empty} is empty",
        "dataset.test_limit is 2.5; it must be a whole number of 1 or more",
        "dataset.max_documents is 0; it must be a whole number of 1 or more",
    ]
    assert len(problems) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(problems, expected))
    assert all("for example dataset." in problem for problem in problems)
    with pytest.raises(ValueError, match="dataset.validation is 'nowhere.jsonl'.*\n.*validation_limit.*\n.*max_doc"):
        data.examples("validation")


def test_problems_checks_the_given_splits_only(tmp_path):
    data = Jsonl(None, write(tmp_path / "v.jsonl", [ROW]), None)
    assert data.problems(["validation"]) == []
    assert len(data.problems(["train", "validation", "test"])) == 2


def test_a_plain_file_named_gz_and_a_truncated_file_are_errors(tmp_path):
    plain, cut = tmp_path / "plain.jsonl.gz", tmp_path / "cut.jsonl.gz"
    plain.write_text(json.dumps(ROW))
    whole = gzip.compress("\n".join(json.dumps(row(id=str(i), context="x" * i)) for i in range(900)).encode(), 0)
    cut.write_bytes(whole[:-2000])
    assert "cannot be read" in Jsonl(str(plain), None, None).problems(["train"])[0]
    with pytest.raises(ValueError, match=r"dataset.train: .*cut.jsonl.gz breaks off after \d+ examples"):
        Jsonl(str(cut), None, None).examples("train")


def test_text_that_is_not_utf8_is_an_error(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(row(context="é"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match="dataset.train: .*latin.jsonl cannot be read .*UTF-8"):
        Jsonl(str(path), None, None).examples("train")


def test_an_unknown_split_is_an_error(tmp_path):
    data = Jsonl(write(tmp_path / "a.jsonl", [ROW]), None, None)
    for call in (lambda: data.examples("dev"), lambda: data.problems(["dev"])):
        with pytest.raises(ValueError, match="split is 'dev'; allowed: train, validation, test"):
            call()


# ------------------------------------------------------------------ layout of passages

PASSAGES = [
    {"title": "Velkeld", "text": " A town. ", "is_gold": False},
    {"title": "", "text": "The metal is tin.", "is_gold": True},
]


def one_example(tmp_path, **keys):
    context, _ = join_passages(PASSAGES)
    file = tmp_path / "a.jsonl"
    file.write_text(
        json.dumps({"context": context, "question": "Which?", "answers": ["tin"], "documents": PASSAGES}) + "\n"
    )
    [example] = Jsonl(None, None, str(file), **keys).examples("test")
    return example


@pytest.mark.parametrize("most", [None, 2])
def test_plain_passages_are_title_and_text_on_a_line(tmp_path, most):
    """RAM's published layout: one line a passage, title, space, text, each stripped."""
    example = one_example(tmp_path, passage_format="plain", max_documents=most)
    assert sorted(example.context.split("\n")) == ["The metal is tin.", "Velkeld A town."]
    texts = {example.context[d.start : d.end]: (d.title, d.is_gold) for d in example.documents}
    assert texts == {"A town.": ("Velkeld", False), "The metal is tin.": ("", True)}
    assert one_example(tmp_path).context == join_passages(PASSAGES)[0]


def test_plain_passages_change_no_context_without_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"context": "a  b", "question": "Q?", "answers": "c"}\n')
    [example] = Jsonl(None, None, str(tmp_path / "a.jsonl"), passage_format="plain").examples("test")
    assert example.context == "a  b" and example.documents == ()


def test_an_unknown_passage_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dataset.passage_format=rows: allowed are numbered, plain"):
        one_example(tmp_path, passage_format="rows")
