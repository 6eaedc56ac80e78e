"""prepare_data.py: files of every format, prepared splits, and every error message."""

import csv
import gzip
import json

import pytest

from data.checks import SPLITS
from data.converters.prepare import prepare
from data.jsonl import Jsonl
from scripts import prepare_data


def nq(question, *texts, gold=0):
    return {
        "question": question,
        "answers": ["yes"],
        "ctxs": [{"title": text, "text": f"{text}.", "isgold": place == gold} for place, text in enumerate(texts)],
    }


def task(context, question="why?", id="a"):
    return {
        "input": question,
        "context": context,
        "answers": ["so"],
        "length": 1,
        "dataset": "t",
        "language": "en",
        "all_classes": None,
        "_id": id,
    }


def lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return str(file)


def table(file, head, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([head.split(","), *rows])
    return str(file)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """call(*words) -> the lines printed, after a call that prepares the folder `out`."""
    monkeypatch.setenv("BREVIARY_DATA", str(tmp_path / "data"))

    def called(*words, output=True):
        prepare_data.main([str(word) for word in words] + (["--output", f"{tmp_path}/out"] if output else []))
        return capsys.readouterr().out.splitlines()

    return called


@pytest.fixture
def error_lines(call, capsys, tmp_path):
    """error_lines(*words) -> the error messages of a call that exits with code 2; it must leave no file behind."""

    def run(*words, output=True):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            call(*words, output=output)
        printed = capsys.readouterr()
        assert (ended.value.code, printed.out) == (2, "") and sorted(tmp_path.rglob("*")) == before
        messages = printed.err.splitlines()
        assert all(message.startswith("error: ") for message in messages), printed.err
        return [message.removeprefix("error: ") for message in messages]

    return run


def prepared(folder, split):
    """The examples of a prepared split, loaded as in training."""
    return Jsonl(**{name: str(folder / f"{name}.jsonl.gz") for name in SPLITS}).examples(split)


def test_splits_are_written_to_the_configured_folder_and_load_as_examples(call, tmp_path):
    files = {
        split: lines(tmp_path / f"{split}.jsonl.gz", [nq(f"q {split}", f"{split} a", f"{split} b", gold=1)])
        for split in SPLITS
    }
    words = [word for split, file in files.items() for word in (f"--{split}", file)]
    printed = call("nq", *words, output=False)
    assert printed == [f"{split}: 1 examples, 1 contexts, 12 words on average" for split in SPLITS] + [
        f"nq: ready: {tmp_path / 'data' / 'nq'} (loaded and compared)",
        "next: python train.py experiment=comi_facts dataset=nq",
    ]
    assert sorted(file.name for file in (tmp_path / "data/nq").iterdir()) == sorted(f"{s}.jsonl.gz" for s in SPLITS)
    [example] = prepared(tmp_path / "data/nq", "test")
    assert (example.id, example.question, example.answers) == ("nq-0-gold1", "q test", ("yes",))
    gold = [example.context[d.start : d.end] for d in example.documents if d.is_gold]
    assert gold == ["test b."] and (tmp_path / "data").is_dir() and len(list((tmp_path / "data").iterdir())) == 1


def test_equal_files_yield_equal_bytes(call, tmp_path):
    file = lines(tmp_path / "a.jsonl", [nq("q", "a", "b")])
    call("nq", "--test", file)
    first = (tmp_path / "out/test.jsonl.gz").read_bytes()
    (tmp_path / "out").rename(tmp_path / "first")
    call("nq", "--test", file)
    assert (tmp_path / "out/test.jsonl.gz").read_bytes() == first


def test_contexts_of_test_are_removed_from_validation_and_train(call, tmp_path):
    train = lines(tmp_path / "train.jsonl", [task("one"), task("two", id="b"), task("three", id="c")])
    validation = lines(tmp_path / "validation.jsonl", [task("two"), task("four", id="b")])
    test = lines(tmp_path / "test.jsonl", [task("four"), task("three", "who?", "b")])
    printed = call("longbench", "--train", train, "--validation", validation, "--test", test)
    shared = "context or question with its gold passages in"
    assert printed[0].startswith("train: 1 examples") and f"skipped: 1 {shared} validation" in printed[0]
    assert f"1 {shared} test" in printed[0]
    assert printed[1] == f"validation: 1 examples, 1 contexts, 1 words on average; skipped: 1 {shared} test"
    assert printed[2] == "test: 2 examples, 2 contexts, 1 words on average"
    assert [[e.context for e in prepared(tmp_path / "out", split)] for split in SPLITS] == [
        ["one"],
        ["two"],
        ["four", "three"],
    ]


def test_reordered_passages_and_gold_passages_with_other_distractors_count_as_shared(call, tmp_path):
    train = lines(
        tmp_path / "train.jsonl", [nq("q", "a", "b", gold=1), nq("r", "x", "b"), nq("q", "b", "e"), nq("s", "b", "f")]
    )
    test = lines(tmp_path / "test.jsonl", [nq("q", "b", "a"), nq("q", "b", "c"), nq("t", "b", "x", gold=1)])
    assert "skipped: 3 context or question with its gold" in call("nq", "--train", train, "--test", test)[0]
    assert [example.question for example in prepared(tmp_path / "out", "train")] == ["s"]


def test_duplicate_rows_are_removed_and_duplicate_ids_renamed(call, tmp_path):
    one = lines(tmp_path / "one.jsonl", [task("x"), task("x"), task("x", "who?"), task("y", id="a~2")])
    two = lines(tmp_path / "two.jsonl.gz", [task("z")])
    printed = call("longbench", "--test", one, two)
    assert printed[0] == (
        "test: 4 examples, 3 contexts, 1 words on average; skipped: 1 duplicate; "
        "3 duplicate ids renamed to ID~2, ID~3, ..."
    )
    examples = prepared(tmp_path / "out", "test")
    assert [(example.id, example.context) for example in examples] == [
        ("a", "x"),
        ("a~2", "x"),
        ("a~2~2", "y"),
        ("a~3", "z"),
    ]


def test_skipped_questions_and_long_contexts_are_counted(call, tmp_path):
    rows = [task("one two"), task("one two three", id="b"), task("", id="c"), {**task("d", id="d"), "answers": [""]}]
    printed = call("longbench", "--test", lines(tmp_path / "a.jsonl", rows), "--max-words", 2)
    assert printed[0] == (
        "test: 1 examples, 1 contexts, 2 words on average; skipped: 1 context above 2 words, 1 no context, 1 no answer"
    )


def test_json_is_read_as_array_lines_columns_or_one_object(call, tmp_path):
    row = {"_id": "1", "question": "which?", "answer": "A", "supporting_facts": [["T", 0]], "context": [["T", ["A."]]]}
    forms = {
        "array": json.dumps([row], indent=1),
        "lines": f"\n{json.dumps(row)}\n\n{json.dumps({**row, '_id': 2})}",
        "one": json.dumps(row),
        "columns": json.dumps({name: {"0": cell} for name, cell in row.items()}, indent=1),
    }
    for name, text in forms.items():
        (tmp_path / f"{name}.json").write_text(f"\ufeff{text}", encoding="utf-8")
        prepare("2wikimultihopqa", {"test": [tmp_path / f"{name}.json"]}, tmp_path / f"out_{name}")
        examples = prepared(tmp_path / f"out_{name}", "test")
        assert [example.id for example in examples] == (["1", "2"] if name == "lines" else ["1"])
        assert examples[0].context == "Document [1](Title: T) A."


def test_a_folder_of_meetings_is_read_and_file_names_become_ids(call, tmp_path):
    for name in ("Bed002", "Bed001"):
        lines(
            tmp_path / "val" / f"{name}.json",
            [
                {
                    "meeting_transcripts": [{"speaker": "A", "content": name}],
                    "specific_query_list": [],
                    "general_query_list": [{"query": "Summarize the meeting", "answer": "Short."}],
                }
            ],
        )
    call("qmsum", "--validation", tmp_path / "val")
    assert [example.id for example in prepared(tmp_path / "out", "validation")] == ["Bed001-g0", "Bed002-g0"]


def test_multi_news_pairs_lines_of_two_files(call, tmp_path, error_lines):
    (tmp_path / "train.src").write_text("a\u2028b ||||| c\nd\n", encoding="utf-8")
    (tmp_path / "train.tgt").write_text("– One.\n", encoding="utf-8")
    assert (
        "train.tgt ends before line 2 of train.src" in error_lines("multi_news", "--train", tmp_path / "train.src")[0]
    )
    (tmp_path / "train.tgt").write_text("– One.\n– Two.\n", encoding="utf-8")
    *_, ready, after = call("multi_news", "--train", tmp_path / "train.src", output=False)
    assert ready.endswith(f"{tmp_path / 'data' / 'multinews'} (loaded and compared)")
    assert after == "next: python train.py experiment=comi_facts dataset=multinews"
    examples = prepared(tmp_path / "data/multinews", "train")
    assert [(example.context, example.answers) for example in examples] == [
        ("Passage 1:\na\u2028b\n\nPassage 2:\nc", ("One.",)),
        ("Passage 1:\nd", ("Two.",)),
    ]
    (tmp_path / "train.tgt").rename(tmp_path / "other.tgt")
    assert "there is no train.tgt in the same folder" in error_lines("multi_news", "--train", tmp_path / "train.src")[0]
    assert "takes the .src file" in error_lines("multi_news", "--train", tmp_path / "other.tgt")[0]


def test_fairytaleqa_reads_the_story_of_its_questions(call, tmp_path, error_lines):
    head = "question_id,attribute1,question,answer1,answer2,answer3,answer4,answer5,answer6"
    file = table(tmp_path / "questions/val/fox-questions.csv", head, [1, "", "Who?", "fox", "", "", "a fox", "", ""])
    assert "section-stories/val/fox-story.csv does not exist" in error_lines("fairytaleqa", "--validation", file)[0]
    table(tmp_path / "section-stories/val/fox-story.csv", "section,text", [1, "A fox,\nred."], [2, "It ran."])
    call("fairytaleqa", "--validation", tmp_path / "questions/val")
    [example] = prepared(tmp_path / "out", "validation")
    assert (example.id, example.context, example.answers) == ("fox-0", "A fox,\nred.\n\nIt ran.", ("fox", "a fox"))


@pytest.fixture
def repository(tmp_path):
    """NarrativeQA's folder: a document in each of train, valid and test; only the first two stories."""
    folder = tmp_path / "narrativeqa"
    sets = {"d1": "train", "d2": "valid", "d3": "test"}
    table(folder / "documents.csv", "document_id,set,kind", *[[name, held, "movie"] for name, held in sets.items()])
    table(
        folder / "qaps.csv",
        "document_id,set,question,answer1,answer2,question_tokenized",
        *[[name, held, f"Who is {name}?", "Mark.", "A pupil.", ""] for name, held in sets.items()],
    )
    table(
        folder / "third_party/wikipedia/summaries.csv",
        "document_id,set,summary,summary_tokenized",
        *[[name, held, f" Summary of {name}.", ""] for name, held in sets.items()],
    )
    (folder / "tmp").mkdir()
    (folder / "tmp/d1.content").write_bytes(b"\xef\xbb\xbfStory one.")
    (folder / "tmp/d2.content").write_bytes(b"Caf\xe9.")
    return folder


def test_narrativeqa_selects_the_rows_of_each_split_with_stories_or_summaries(call, tmp_path, repository, error_lines):
    words = [word for split in SPLITS for word in (f"--{split}", repository)]
    call("narrativeqa", *words, "--context", "summaries", output=False)
    examples = [prepared(tmp_path / "data/narrativeqa", split)[0] for split in SPLITS]
    assert [example.context.strip() for example in examples] == [f"Summary of d{number}." for number in (1, 2, 3)]
    assert examples[0].answers == ("Mark.", "A pupil.")
    call("narrativeqa", *words[:4])
    assert [prepared(tmp_path / "out", split)[0].context for split in SPLITS[:2]] == ["Story one.", "Café."]
    assert error_lines("narrativeqa", "--test", repository, "--output", tmp_path / "x", output=False) == [
        "--test: no example remains (1 no story of that document)"
    ]
    (repository / "tmp").rename(tmp_path / "stories")
    assert (
        "name the folder of stories with --stories"
        in error_lines("narrativeqa", "--train", repository, "--output", tmp_path / "x", output=False)[0]
    )
    call(
        "narrativeqa",
        "--train",
        repository,
        "--stories",
        tmp_path / "stories",
        "--output",
        tmp_path / "y",
        output=False,
    )
    assert prepared(tmp_path / "y", "train")[0].context == "Story one."


def test_narrativeqa_tables_must_be_consistent(tmp_path, repository, error_lines):
    table(repository / "documents.csv", "document_id,set", ["d1", "train"])
    [message] = error_lines("narrativeqa", "--test", repository, "--context", "summaries")
    assert message.endswith("qaps.csv, row 3: the document 'd3' has no row in documents.csv")
    (repository / "documents.csv").unlink()
    assert "no documents.csv in this folder" in error_lines("narrativeqa", "--test", repository)[0]
    assert "takes the folder" in error_lines("narrativeqa", "--test", repository / "qaps.csv")[0]


def test_every_bad_row_is_reported_with_its_file_and_nothing_is_written(tmp_path, error_lines):
    good, bad = nq("q", "a"), {"question": "q", "answers": ["a"]}
    files = [lines(tmp_path / "a.jsonl", [good, bad, {**good, "answers": 3}]), lines(tmp_path / "b.jsonl.gz", [bad])]
    train = lines(tmp_path / "train.jsonl", [good])
    messages = error_lines("nq", "--train", train, "--test", *files)
    assert [message.split(": ")[0] for message in messages] == [
        f"{files[0]}, row 2",
        f"{files[0]}, row 3",
        f"{files[1]}, row 1",
    ]
    assert messages[1].endswith("'answers' is a whole number; it must be a list")
    many = error_lines("nq", "--test", lines(tmp_path / "c.jsonl", [bad] * 13))
    assert len(many) == 11 and many[-1] == "... and 3 more bad rows"


def test_unreadable_files_are_reported(tmp_path, error_lines):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(task('x'))}\n{{\n")
    assert error_lines("longbench", "--test", tmp_path / "a.jsonl")[0].startswith(
        f"{tmp_path}/a.jsonl, line 2: not JSON ("
    )
    (tmp_path / "b.json").write_text('[{"a": 1},')
    assert error_lines("hotpotqa", "--test", tmp_path / "b.json")[0].startswith(f"{tmp_path}/b.json: not JSON (")
    (tmp_path / "c.jsonl.gz").write_bytes(b"plain")
    assert "c.jsonl.gz cannot be read" in error_lines("longbench", "--test", tmp_path / "c.jsonl.gz")[0]
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe")
    assert "must be complete UTF-8 text" in error_lines("longbench", "--test", tmp_path / "d.jsonl")[0]
    (tmp_path / "e.json").write_text('{"documents": []}')
    assert error_lines("contract_nli", "--test", tmp_path / "e.json") == [
        f"{tmp_path}/e.json: the field 'labels' of the file is missing (fields: 'documents')"
    ]
    table(tmp_path / "questions/val/fox-questions.csv", "question,answer1", ["Who?", "fox"])
    table(tmp_path / "section-stories/val/fox-story.csv", "section,text", [1, "A fox."])
    assert "no column 'answer2', 'answer3'" in error_lines("fairytaleqa", "--test", tmp_path / "questions/val")[0]
    table(tmp_path / "section-stories/val/fox-story.csv", "section,text", [1])
    assert "fox-story.csv, row 1: not 2 cells" in error_lines("fairytaleqa", "--test", tmp_path / "questions/val")[0]
    (tmp_path / "empty").mkdir()
    assert "no .json or .jsonl file in this folder" in error_lines("qmsum", "--test", tmp_path / "empty")[0]
    (tmp_path / "f.jsonl").write_text("[]")
    assert error_lines("nq", "--test", tmp_path / "f.jsonl") == ["--test: no example remains (the files have no rows)"]


def test_wrong_arguments_are_reported_together(call, tmp_path, error_lines):
    assert error_lines("squad", "--test", "x")[0].startswith("format 'squad': allowed are nq, hotpotqa, ")
    assert error_lines("nq") == ["no files: name the data set's files with --train, --validation and --test"]
    for format in ("longbench", "kv_retrieval"):
        assert "name the folder of this one, for example --name" in error_lines(format, "--test", "x", output=False)[0]
    file = lines(tmp_path / "a.jsonl", [nq("q", "a")])
    call("nq", "--test", file)
    messages = error_lines("nq", "--test", file, "--train", tmp_path / "absent", "--max-words", "0")
    assert len(messages) == 3 and messages[0] == f"--train {tmp_path}/absent: no such file or folder"
    assert "already exists: splits are checked against each other" in messages[1] and "--max-words 0" in messages[2]
