"""Converters of public data sets' formats, on rows written here."""

import copy

import pytest

from data.converters import CONVERTERS, UNPACKERS
from data.converters.fields import Skipped
from data.jsonl import join_passages

ID, KEY, VALUE = "5a8c75", "3f1c", "9b2e"
NQ = {
    "question": "who wrote it?",
    "answers": ["Ann", "Ann Lee"],
    "ctxs": [
        {"title": "A", "text": "Nobody.", "hasanswer": False, "isgold": False},
        {"title": "B", "text": "Ann wrote it.", "hasanswer": True, "isgold": True},
    ],
}
HOTPOT = {
    "_id": ID,
    "question": "Which town? ",
    "answer": "Bath",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Bath", 0], ["Avon", 1]],
    "context": [["Bath", ["Bath is a town.", " It has baths."]], ["Kew", ["Kew."]], ["Avon", ["A", " river."]]],
}
HUB = {
    **{key: HOTPOT[key] for key in ("question", "answer", "type", "level")},
    "id": ID,
    "supporting_facts": {"title": ["Bath", "Avon"], "sent_id": [0, 1]},
    "context": {
        "title": [title for title, _ in HOTPOT["context"]],
        "sentences": [sentences for _, sentences in HOTPOT["context"]],
    },
}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Whose heir?",
    "answer": "Jo",
    "answer_aliases": ["Joan", "Jo"],
    "answerable": True,
    "question_decomposition": [],
    "paragraphs": [
        {"idx": 0, "title": "T", "paragraph_text": "Jo.", "is_supporting": True},
        {"idx": 1, "title": "U", "paragraph_text": "Else.", "is_supporting": False},
    ],
}
QMSUM = {
    "meeting": "Bed001",
    "topic_list": [],
    "meeting_transcripts": [
        {"speaker": "Grad C", "content": "{vocalsound} Well , {disfmarker} yes ."},
        {"speaker": "PhD D", "content": "{gap}"},
    ],
    "general_query_list": [{"query": "Summarize the meeting", "answer": "They agreed."}],
    "specific_query_list": [
        {"query": "Who agreed?", "answer": "C did.", "relevant_text_span": [["0", "0"]]},
        {"query": "Why?", "answer": " "},
    ],
}
CONTRACT = {
    "documents": [
        {
            "id": 3,
            "file_name": "a.pdf",
            "text": "The parties ...",
            "spans": [[0, 11]],
            "url": "",
            "annotation_sets": [
                {
                    "annotations": {
                        "nda-1": {"choice": "NotMentioned", "spans": []},
                        "nda-2": {"choice": "Entailment", "spans": [0]},
                    }
                }
            ],
        }
    ],
    "labels": {
        "nda-1": {"short_description": "x", "hypothesis": "No copies."},
        "nda-2": {"short_description": "y", "hypothesis": "There are parties."},
    },
}
NARRATIVE = {
    "document_id": "00ff",
    "set": "test",
    "question": "Who is Mark?",
    "answer1": "A pupil.",
    "answer2": "A pupil.",
    "context": "Mark is a pupil.",
}
PAPER = {
    "title": "On words",
    "abstract": "We count.",
    "full_text": [
        {"section_name": "Intro", "paragraphs": ["First.", "Second."]},
        {"section_name": None, "paragraphs": ["Third."]},
    ],
    "qas": [
        {
            "question": "What?",
            "question_id": "q1",
            "answers": [
                {
                    "answer": {
                        "unanswerable": False,
                        "extractive_spans": ["one", "two"],
                        "yes_no": None,
                        "free_form_answer": "",
                        "evidence": [],
                    }
                },
                {"answer": {"unanswerable": True, "extractive_spans": [], "yes_no": None, "free_form_answer": ""}},
                {"answer": {"unanswerable": False, "extractive_spans": [], "yes_no": False, "free_form_answer": ""}},
                {
                    "answer": {
                        "unanswerable": False,
                        "extractive_spans": [],
                        "yes_no": None,
                        "free_form_answer": "Four.",
                    }
                },
            ],
        }
    ],
}
NEWS = {"source": "First. NEWLINE_CHAR More. story_separator_special_tag Second.\n", "target": "– Two things.\n"}
QUALITY = {
    "article_id": "5",
    "set_unique_id": "5_X",
    "article": "A long tale.",
    "questions": [
        {"question": "What is it?", "options": ["song", "tale", "list", "joke"], "gold_label": 2, "difficult": 0}
    ],
}
FAIRY = {
    "story": "fox",
    "place": 4,
    "sections": ["A fox\rran.", "It hid."],
    "question": "Who ran?",
    "answer1": "a fox",
    "answer2": "the fox",
    "answer3": "",
    "answer4": "A fox.",
    "answer5": "a fox",
    "answer6": "",
}
KV = {"ordered_kv_records": [["aa", "bb"], [KEY, VALUE]], "key": KEY, "value": VALUE}
LONGBENCH = {
    "input": "",
    "context": "A report.",
    "answers": ["Short."],
    "length": 2,
    "dataset": "gov_report",
    "language": "en",
    "all_classes": None,
    "_id": "c0ffee",
}
ROWS = {
    "nq": NQ,
    "hotpotqa": HOTPOT,
    "2wikimultihopqa": HOTPOT,
    "musique": MUSIQUE,
    "qmsum": QMSUM,
    "contract_nli": {**CONTRACT["documents"][0], "labels": CONTRACT["labels"]},
    "narrativeqa": NARRATIVE,
    "qasper": {"paper": "1909.1", **PAPER},
    "multi_news": NEWS,
    "quality": QUALITY,
    "fairytaleqa": FAIRY,
    "kv_retrieval": KV,
    "longbench": LONGBENCH,
    "scrolls": {"task": "qasper", "id": "q1", "input": "Why?\n\nA paper.\n\nIts end.", "outputs": ["so", "thus"]},
    "prompted": {"input": "A tale.\n\nIts end.", "prompt": "Who?", "answer": ["Ann", "Ann Lee"]},
}


def convert(format, *rows):
    return list(CONVERTERS[format](rows))


def changed(format, change):
    """The format's row after `change(row)`."""
    row = copy.deepcopy(ROWS[format])
    change(row)
    return row


def test_every_format_has_a_row_here():
    assert ROWS.keys() == CONVERTERS.keys()


@pytest.mark.parametrize("format", sorted(ROWS))
def test_a_row_is_converted_to_the_common_format_and_not_modified(format):
    row = copy.deepcopy(ROWS[format])
    examples = [example for example in convert(format, row) if not isinstance(example, Skipped)]
    assert row == ROWS[format] and examples
    for example in examples:
        assert set(example) - {"documents"} == {"id", "context", "question", "answers"}
        assert example["context"].strip() and example["question"] == example["question"].strip() != ""
        assert example["answers"] and all(answer == answer.strip() != "" for answer in example["answers"])
        if "documents" in example:
            assert join_passages(example["documents"])[0] == example["context"]


def test_nq_keeps_the_order_of_passages_and_its_id_holds_the_gold_place():
    _, example = convert("nq", NQ, NQ)
    assert (example["id"], example["answers"]) == ("nq-1-gold1", ["Ann", "Ann Lee"])
    assert example["context"] == "Document [1](Title: A) Nobody.\n\nDocument [2](Title: B) Ann wrote it."
    assert [document["is_gold"] for document in example["documents"]] == [False, True]
    [example] = convert("nq", changed("nq", lambda row: row["ctxs"].pop()))
    assert example["id"] == "nq-0"


def test_hotpotqa_official_and_hub_rows_yield_equal_examples():
    [official], [hub] = convert("hotpotqa", HOTPOT), convert("hotpotqa", HUB)
    assert official == hub and official["id"] == ID and official["question"] == "Which town?"
    assert official["documents"] == [
        {"title": "Bath", "text": "Bath is a town. It has baths.", "is_gold": True},
        {"title": "Kew", "text": "Kew.", "is_gold": False},
        {"title": "Avon", "text": "A river.", "is_gold": True},
    ]
    [nameless] = convert("hotpotqa", {key: HUB[key] for key in HUB if key != "id"})
    assert nameless == {**hub, "id": "hotpotqa-0"}


def test_2wiki_pandas_columns_yield_the_rows():
    rows = [{**HOTPOT, "_id": str(number), "evidences": []} for number in range(3)]
    columns = {("_1" if key == "_id" else key): {str(n): row[key] for n, row in enumerate(rows)} for key in rows[0]}
    assert convert("2wikimultihopqa", *UNPACKERS["2wikimultihopqa"](columns)) == convert("2wikimultihopqa", *rows)
    assert list(UNPACKERS["hotpotqa"](HOTPOT)) == [HOTPOT] and list(UNPACKERS["hotpotqa"](HUB)) == [HUB]
    del columns["answer"]["1"]
    with pytest.raises(
        ValueError, match="the rows of column 'answer' differ from those of 'question' \\(2 and 3 rows\\)"
    ):
        list(UNPACKERS["2wikimultihopqa"](columns))


def test_prompted_takes_one_answer_or_several_and_changes_no_text():
    [example] = convert("prompted", {"input": " A tale. ", "prompt": "Who?\n", "answer": "Ann", "id": 7})
    assert example == {"id": "7", "context": " A tale. ", "question": "Who?\n", "answers": ["Ann"]}
    assert [one["id"] for one in convert("prompted", *[ROWS["prompted"]] * 2)] == ["prompted-0", "prompted-1"]


def test_musique_uses_aliases_and_skips_unanswerable_questions():
    [example] = convert("musique", MUSIQUE)
    assert example["answers"] == ["Jo", "Joan"]
    assert [document["is_gold"] for document in example["documents"]] == [True, False]
    assert convert("musique", {**MUSIQUE, "answerable": False}) == [Skipped("unanswerable")]


def test_qmsum_yields_general_then_specific_queries_and_removes_noise_marks():
    general, specific, empty = convert("qmsum", QMSUM)
    assert general["context"] == specific["context"] == "Grad C: Well , yes .\nPhD D: "
    assert (general["id"], general["answers"]) == ("Bed001-g0", ["They agreed."])
    assert (specific["id"], specific["question"]) == ("Bed001-s0", "Who agreed?")
    assert empty == Skipped("no answer")


def test_contract_nli_yields_an_example_for_every_label():
    first, second = convert("contract_nli", *UNPACKERS["contract_nli"](CONTRACT))
    assert (first["id"], first["question"], first["answers"]) == ("3-nda-1", "No copies.", ["Not mentioned"])
    assert (second["id"], second["answers"]) == ("3-nda-2", ["Entailment"])
    bare = changed("contract_nli", lambda row: row["annotation_sets"].clear())
    assert convert("contract_nli", bare) == [Skipped("no annotations")]


def test_narrativeqa_skips_a_missing_story_and_converts_html():
    [example] = convert("narrativeqa", NARRATIVE)
    assert (example["id"], example["answers"]) == ("00ff-0", ["A pupil."])
    page = "<HTML><head><style>p {}</style></head><body><pre>FADE IN: &amp; out</pre><script>1</script></body></HTML>"
    missing, shown = convert("narrativeqa", {**NARRATIVE, "context": None}, {**NARRATIVE, "context": page})
    assert missing == Skipped("no story of that document") and shown["context"] == "FADE IN: & out"
    assert shown["id"] == "00ff-1"


def test_qasper_answers_have_the_wording_of_the_official_evaluation():
    [example] = convert("qasper", *UNPACKERS["qasper"]({"1909.1": PAPER}))
    assert example["context"] == "On words\n\nAbstract\nWe count.\n\nIntro\nFirst.\nSecond.\n\nThird."
    assert example["id"] == "q1" and example["answers"] == ["one, two", "Unanswerable", "No", "Four."]


@pytest.mark.parametrize("separator", ["story_separator_special_tag", "|||||"])
def test_multi_news_splits_articles_at_either_separator(separator):
    source = NEWS["source"].replace("story_separator_special_tag", separator)
    [example] = convert("multi_news", {**NEWS, "source": f"{source.strip()} {separator} \n"})
    assert example["context"] == "Passage 1:\nFirst.\nMore.\n\nPassage 2:\nSecond."
    assert example["answers"] == ["Two things."] and example["question"].startswith("Write a one-page summary")
    assert convert("multi_news", {**NEWS, "source": "\n"}) == [Skipped("no context")]


def test_quality_question_holds_the_options_and_the_answer_is_an_option_s_text():
    [example] = convert("quality", QUALITY)
    assert example["question"] == "What is it?\n(A) song\n(B) tale\n(C) list\n(D) joke"
    assert (example["id"], example["answers"]) == ("5_X_1", ["tale"])


def test_fairytaleqa_joins_sections_and_uses_both_annotators():
    [example] = convert("fairytaleqa", FAIRY)
    assert example["context"] == "A fox\nran.\n\nIt hid." and example["id"] == "fox-4"
    assert example["answers"] == ["a fox", "A fox.", "the fox"]


def test_kv_retrieval_context_is_one_json_object():
    [example] = convert("kv_retrieval", KV)
    assert example["context"] == '{"aa": "bb",\n "3f1c": "9b2e"}' and example["answers"] == [VALUE]
    assert example["id"] == "kv2-0" and f'"{KEY}"' in example["question"]


def test_longbench_uses_the_task_s_question_where_the_row_has_none():
    [from_task], [from_row] = convert("longbench", LONGBENCH), convert("longbench", {**LONGBENCH, "input": "Why?"})
    assert (from_task["id"], from_task["question"]) == ("c0ffee", "Write a one-page summary of the report.")
    assert from_row["question"] == "Why?"


@pytest.mark.parametrize(
    "format,change",
    [
        ("hotpotqa", lambda row: row.pop("answer")),
        ("2wikimultihopqa", lambda row: row.pop("answer")),
        ("musique", lambda row: row.pop("answer")),
        ("quality", lambda row: row["questions"][0].pop("gold_label")),
    ],
)
def test_rows_of_test_files_with_hidden_answers_are_skipped(format, change):
    [skipped] = convert(format, changed(format, change))
    assert "hidden answers" in skipped.reason


BAD = [
    ("nq", lambda row: row.pop("ctxs"), "the field 'ctxs' is missing \\(fields: 'question', 'answers'\\)"),
    ("nq", lambda row: row["ctxs"][1].update(isgold=1), "'isgold' of passage 2 is a whole number; it must be true or"),
    ("nq", lambda row: row.update(answers="Ann"), "'answers' is a string; it must be a list"),
    ("nq", lambda row: row.update(answers=["Ann", None]), "item 2 of 'answers' is null; it must be a string"),
    ("nq", lambda row: row.update(ctxs=["text"]), "passage 1 is a string; it must be an object with the field 'title'"),
    ("hotpotqa", lambda row: row["context"][1].pop(), "paragraph 2 of 'context' is not a pair of a title and a list"),
    ("hotpotqa", lambda row: row.update(context="[]"), "'context' is a string; it must be a list"),
    ("hotpotqa", lambda row: row.update(supporting_facts=[[0, "Bath"]]), "item 1 of 'supporting_facts' does not begin"),
    (
        "hotpotqa",
        lambda row: row.update(copy.deepcopy(HUB)) or row["context"]["title"].pop(),
        "'context' has 2 titles but 3 lists of",
    ),
    ("2wikimultihopqa", lambda row: row.update(answer=7), "'answer' is a whole number; it must be a string"),
    ("musique", lambda row: row["paragraphs"][0].pop("is_supporting"), "'is_supporting' of paragraph 1 is missing"),
    ("qmsum", lambda row: row["meeting_transcripts"][0].pop("content"), "the field 'content' of turn 1 is missing"),
    ("qmsum", lambda row: row["specific_query_list"][1].pop("query"), "of query 2 in 'specific_query_list' is missing"),
    (
        "contract_nli",
        lambda row: row["annotation_sets"][0]["annotations"]["nda-2"].update(choice="Maybe"),
        "'choice' of the annotation 'nda-2' is 'Maybe'; allowed: Entailment, Contradiction, NotMentioned",
    ),
    ("contract_nli", lambda row: row["labels"].pop("nda-1"), "'nda-1' is not among the file's 'labels' \\(nda-2\\)"),
    ("narrativeqa", lambda row: row.pop("answer2"), "the field 'answer2' is missing"),
    ("qasper", lambda row: row["full_text"][1].pop("section_name"), "'section_name' of section 2 is missing"),
    ("qasper", lambda row: row["qas"][0]["answers"][0]["answer"].update(unanswerable="no"), "an answer of question 1"),
    ("multi_news", lambda row: row.update(target=None), "'target' is null; it must be a string"),
    ("quality", lambda row: row["questions"][0]["options"].pop(), "'options' of question 1 holds 3 options; it must"),
    ("quality", lambda row: row["questions"][0].update(gold_label=5), "is 5; it must be a whole number in 1..4"),
    ("fairytaleqa", lambda row: row.pop("answer6"), "the field 'answer6' is missing"),
    ("kv_retrieval", lambda row: row.update(value="else"), "\\('3f1c', 'else'\\) is not among 'ordered_kv_records'"),
    ("kv_retrieval", lambda row: row["ordered_kv_records"][0].pop(), "item 1 of 'ordered_kv_records' is not a pair"),
    ("longbench", lambda row: row.update(context="A \ud83d."), "the context holds a lone surrogate \\('\\\\ud83d'\\)"),
    (
        "longbench",
        lambda row: row.update(dataset="qasper"),
        "'input' is empty, and there is no default question for the data set 'qasper'",
    ),
]


@pytest.mark.parametrize("format,change,message", BAD, ids=[f"{case[0]}-{n}" for n, case in enumerate(BAD)])
def test_a_malformed_row_raises_one_line_with_its_cause(format, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert(format, changed(format, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", sorted(CONVERTERS))
def test_a_row_that_is_not_an_object_is_an_error(format):
    with pytest.raises(ValueError, match="the row is a list; it must be an object"):
        convert(format, ["text"])


@pytest.mark.parametrize("format", sorted(UNPACKERS))
def test_a_file_of_another_type_is_an_error(format):
    with pytest.raises(ValueError, match="the file is a string; it must be "):
        list(UNPACKERS[format]("text"))


def test_a_converter_continues_after_a_bad_row():
    rows = iter([NQ, {**NQ, "ctxs": 3}, {**NQ, "question": "when?"}])
    with pytest.raises(ValueError, match="'ctxs' is a whole number"):
        list(CONVERTERS["nq"](rows))
    assert [example["question"] for example in CONVERTERS["nq"](rows)] == ["when?"]
