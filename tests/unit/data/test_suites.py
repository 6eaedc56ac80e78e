"""Suites read from files: each source's format (tiny samples, written here), prompts byte for byte, tasks of a YAML."""

import functools
import hashlib
import json
import zipfile

import numpy
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from breviary.config.compose import load_choice
from breviary.config.defaults import fill_defaults
from breviary.config.keys import CONFIGS
from data.converters.suites import SUITES, suite_files
from data.metrics import METRICS, Scorer
from data.metrics.registry import split_name
from data.public.suites import SuiteTask
from data.text_pipeline import DataPipeline
from scripts import prepare_data


def lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def prepared(tmp_path, format, *files):
    prepare_data.main([format, "--test", *map(str, files), "--output", str(tmp_path / "out" / format)])
    return tmp_path / "out" / format


@functools.cache
def suite_yaml(format):
    """configs/dataset/FORMAT.yaml, which tests must not change."""
    return load_choice(CONFIGS / "dataset" / f"{format}.yaml")


def resolved(format, **settings):
    """The data set's section and the prompt of a task, as a run has them."""
    cfg = OmegaConf.create(
        {
            "paths": {"data": "nowhere"},
            "dataset": OmegaConf.merge(suite_yaml(format), settings),
            "prompt": {"instruction": None, "template": None, "chat": None, "answer_template": None},
            "generation": {"max_new_tokens": None, "stop": None},
            "limits": {"truncation": None},
        }
    )
    fill_defaults(cfg)
    return cfg


def read(tmp_path, format, task, **settings):
    """(examples of a prepared task, what the reader is given for each without a chat template)."""
    cfg = resolved(format, task=task, folder=str(tmp_path / "out" / format), **settings)
    examples = instantiate(cfg.dataset).examples("test")
    return examples, [
        cfg.prompt.instruction + e.context + cfg.prompt.template.replace("{question}", e.question) + e.answer_prefix
        for e in examples
    ]


# ------------------------------------------------------------------ LongBench


def longbench(**changes):
    row = {"input": "Who?", "context": "A.", "answers": ["Ann"], "length": 1, "dataset": "x", "language": "en"}
    return {**row, "all_classes": None, "_id": "a1", **changes}


# First 12 digits of the sha256 of each prompt in config/dataset2prompt.json, {context} and {input} included.
PROMPTS = {
    "narrativeqa": "5178f3835db9",
    "qasper": "0fbdd123fe7f",
    "multifieldqa_en": "20b4666a2de8",
    "multifieldqa_zh": "344b3a4e557c",
    "hotpotqa": "9ec4ae308865",
    "2wikimqa": "9ec4ae308865",
    "musique": "9ec4ae308865",
    "dureader": "ae53329f51b1",
    "gov_report": "91c25d585b18",
    "qmsum": "dca23b678fe0",
    "multi_news": "2af3f28c40b9",
    "vcsum": "3e5d8241bc9b",
    "trec": "0eff8bebdba9",
    "triviaqa": "00a802e6377e",
    "samsum": "a68d88423490",
    "lsht": "f3edabdf7fae",
    "passage_count": "986550b6c610",
    "passage_retrieval_en": "39b96b7fa52b",
    "passage_retrieval_zh": "c1e2346e245e",
    "lcc": "6a1f24cf0bb8",
    "repobench-p": "ee9ec182ea5f",
}


def test_every_prompt_of_longbench_is_the_suite_s_byte_for_byte(tmp_path):
    files = [lines(tmp_path / f"{task}.jsonl", [longbench(input="{input}", context="{context}")]) for task in PROMPTS]
    prepared(tmp_path, "longbench_v1", *files)
    for task, digest in PROMPTS.items():
        [example], [text] = read(tmp_path, "longbench_v1", task)
        assert hashlib.sha256(text.encode()).hexdigest().startswith(digest), text
        assert example.answers == ("Ann",) and example.choices == ()


def test_white_space_and_classes_of_longbench_are_kept(tmp_path):
    rows = [
        longbench(input="Question: What?\nType:", answers=["City "], all_classes=["City ", "Animal"]),
        longbench(input="def f():\n", answers=["  return 1\n"], _id="b"),
    ]
    prepared(tmp_path, "longbench_v1", *(lines(tmp_path / f"{t}.jsonl", [r]) for t, r in zip(("trec", "lcc"), rows)))
    [trec], [text] = read(tmp_path, "longbench_v1", "trec")
    assert text.endswith(".\n\nA.\nQuestion: What?\nType:") and trec.choices == ("City ", "Animal")
    assert read(tmp_path, "longbench_v1", "lcc")[0][0].answers == ("  return 1\n",)


def test_limits_chat_and_metrics_of_longbench():
    def settings(task):
        cfg = resolved("longbench_v1", task=task)
        return cfg.prompt.chat, cfg.generation.max_new_tokens, list(cfg.generation.stop), list(cfg.dataset.metrics)

    assert settings("hotpotqa") == (True, 32, [], ["f1"])
    assert settings("samsum") == (False, 128, ["\n"], ["rougeL_longbench@first_line"])
    assert settings("gov_report") == (True, 512, [], ["rougeL_longbench"])
    assert settings("repobench-p") == (False, 64, [], ["edit_similarity"])
    assert resolved("longbench_v1").limits.truncation == "middle"


def test_longbench_e_has_parts_by_length(tmp_path, capsys):
    rows = [longbench(_id=f"i{n}", length=n, input=f"{n}?") for n in (10, 3999, 4000, 7999, 8000)]
    prepared(tmp_path, "longbench_v1", lines(tmp_path / "data" / "hotpotqa_e.jsonl", rows).rpartition("/")[0])
    assert "dataset.task=hotpotqa dataset.variant=_e" in capsys.readouterr().out
    examples, _ = read(tmp_path, "longbench_v1", "hotpotqa", variant="_e")
    parts = ["0-4k", "0-4k", "4-8k", "4-8k", "8k+"]
    assert [e.id for e in examples] == [f"{p}/i{n}" for p, n in zip(parts, (10, 3999, 4000, 7999, 8000))]
    for part, count in (("0-4k", 2), ("8k+", 1)):
        assert len(read(tmp_path, "longbench_v1", "hotpotqa", variant="_e", part=part)[0]) == count
    with pytest.raises(ValueError, match=r"^dataset.part is '9k'; allowed are 0-4k, 4-8k, 8k\+, and null"):
        read(tmp_path, "longbench_v1", "hotpotqa", variant="_e", part="9k")


V2 = {
    "_id": "x",
    "difficulty": "hard",
    "length": "short",
    "question": " Which? ",
    "choice_A": "one",
    "choice_B": "two",
    "choice_C": "three",
    "choice_D": "four",
    "answer": "C",
    "context": "Text.\n",
}


def test_longbench_v2(tmp_path):
    repeated = {**V2, "_id": "y", "choice_A": "two"}
    (tmp_path / "data.json").write_text(json.dumps([V2, {**V2, "_id": "z", "difficulty": "easy"}, repeated]))
    prepared(tmp_path, "longbench_v2", tmp_path / "data.json")
    examples, [text, _] = read(tmp_path, "longbench_v2", "qa")
    assert text == (
        "Please read the following text and answer the question below.\n\n<text>\nText.\n</text>\n\nWhat is the "
        "correct answer to this question: Which?\nChoices:\n(A) one\n(B) two\n(C) three\n(D) four\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".'
    )
    assert (examples[0].answers, examples[0].choices) == (("three",), ("one", "two", "three", "four"))
    assert [e.id for e in read(tmp_path, "longbench_v2", "qa", part="easy")[0]] == ["easy/short/z"]
    score = Scorer(["choice_letter_v2"])
    assert score("The correct answer is (C)", examples[0].answers, examples[0])["choice_letter_v2"] == 1


# ------------------------------------------------------------------ ZeroSCROLLS


def zero(text, document, query, output, **changes):
    """A row with the indices of the document and the query in the whole prompt."""
    start, at = text.index(document), text.index(query) if query else len(text) - len("Summary:\n")
    end = at + len(query)
    places = {"document_start_index": start, "document_end_index": start + len(document), "query_start_index": at}
    return {"id": "d", "pid": "d_0", "input": text, "output": output, **places, "query_end_index": end, **changes}


def test_zero_scrolls_rows_are_the_whole_prompt(tmp_path):
    qasper = "Answer.\n\nArticle:\nIt rains.\n\nQuestion:\nDoes it?\n\nAnswer:\n"
    report = "Summarise.\n\nReport:\nIt rains.\n\nSummary:\n"
    quality = "Choose.\n\nStory:\nIt rains.\n\nQuestion and Possible Answers:\nWhy?\n (A) Sun\n (B) Clouds\n (C) Luck\n"
    quality += " (D) No\n\nAnswer:\n"
    query = quality[quality.index("Question and") : quality.index("\n\nAnswer")]
    rows = {
        "qasper": zero(qasper, "It rains.", "Question:\nDoes it?", "Yes"),
        "gov_report": zero(report, "It rains.", "", "Rain."),
        "quality": zero(quality, "It rains.", query, "B"),
    }
    for task, row in rows.items():
        with zipfile.ZipFile(tmp_path / f"{task}.zip", "w") as archive:
            archive.writestr(f"{task}/validation.jsonl", json.dumps(row) + "\n")
            archive.writestr(f"{task}/test.jsonl", json.dumps({**row, "output": None}) + "\n")
    prepared(tmp_path, "zero_scrolls", tmp_path)
    for task, row in rows.items():
        [example], [text] = read(tmp_path, "zero_scrolls", task)
        assert text == row["input"] and example.context.endswith("\nIt rains.")
        assert example.answer_prefix == ("" if task == "gov_report" else "\n\nAnswer:\n")
    assert (example.answers, example.choices) == (("Clouds",), ("Sun", "Clouds", "Luck", "No"))
    assert Scorer(["choice_letter"])("(B) Clouds", example.answers, example)["choice_letter"] == 1
    assert resolved("zero_scrolls", task="quality").limits.truncation == "head"


def test_hidden_answers_and_wrong_indices_of_zero_scrolls(tmp_path, capsys):
    hidden = zero("A\n\nB.\n\nC?\n\nD:", "B.", "C?", None)
    file = lines(tmp_path / "qasper" / "test.jsonl", [hidden])
    with pytest.raises(SystemExit):
        prepared(tmp_path, "zero_scrolls", file)
    assert "qasper: --test: no example remains (1 hidden answer)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepared(
            tmp_path, "zero_scrolls", lines(tmp_path / "qasper" / "test.jsonl", [{**hidden, "query_end_index": 99}])
        )
    assert "test.jsonl, row 1: document_end_index=5, query_start_index=7, query_end_index=99: must ascend" in (
        capsys.readouterr().err
    )


# ------------------------------------------------------------------ InfiniteBench, SCBench

OPTIONS = ["red", "blue", "green", "black"]


def test_infinitebench(tmp_path):
    rows = {
        "passkey": {"context": "x 71432 y", "input": "What is the pass key?", "answer": ["71432"]},
        "longbook_choice_eng": {"context": "B.", "input": "Which?", "answer": ["blue"], "options": OPTIONS},
        "code_debug": {"context": "c", "input": "Which?", "answer": ["red", "A"], "options": OPTIONS},
        "math_find": {"context": "[1, 2]", "input": "The largest number is: ", "answer": 2},
        "math_calc": {"context": "1 + 1 - 2", "input": "", "answer": [1, 2, 0, 2]},
        "code_run": {"context": "def func_1(x):", "input": "Please give func_1(-3).", "answer": [-3]},
        "longbook_sum_eng": {"context": "B.", "input": "", "answer": ["Sum."]},
    }
    rows = {task: {"id": 0, "options": [], **row} for task, row in rows.items()}
    prepared(tmp_path, "infinitebench", *(lines(tmp_path / f"{task}.jsonl", [row]) for task, row in rows.items()))
    texts, answers = {}, {}
    for task in rows:
        [example], [texts[task]] = read(tmp_path, "infinitebench", task)
        answers[task] = example.answers
    assert texts["passkey"].endswith("there.\n\nx 71432 y\n\nWhat is the pass key?\n\nThe pass key is")
    assert texts["longbook_choice_eng"] == (
        "Read the book and answer the question.\n\nB.\n\nQuestion: Which?\nA. red\nB. blue\nC. green\nD. black\n\n"
        "The letter of the correct answer is"
    )
    assert (
        texts["math_find"] == "What is the largest number in the following list?\n\n[1, 2]\n\nThe largest number is: "
    )
    assert texts["math_calc"].endswith("Expression: 1 + 1 - 2\nValues:")
    assert texts["code_run"] == (
        "There is a function called func_1 in the following Python code.\n\ndef func_1(x):\n\nPlease compute the exact "
        "value of func_1(-3). The value of func_1(-3) is"
    )
    assert texts["longbook_sum_eng"] == "Summarize the book below.\n\nB.\n\nSummary:"
    assert answers["longbook_choice_eng"] == ("blue", "B") and answers["code_debug"] == ("red", "A")
    assert answers["math_calc"] == ("1", "2", "0", "2")  # in order, repetitions included
    assert (answers["math_find"], answers["code_run"]) == (("2",), ("-3",))


def test_scbench_asks_many_questions_of_one_context(tmp_path):
    turns = [{"input": f"Q{n}?", "answer": [f"a{n}"], "options": OPTIONS} for n in range(3)]
    choice = [{"input": "Which?", "answer": "C", "options": OPTIONS}]
    finds = [{"input": f"The {word} number is: ", "answer": n} for n, word in enumerate(("largest", "smallest"))]
    files = [
        lines(tmp_path / f"scbench_{task}.jsonl", [{"id": 7, "context": "Book.", "multi_turns": rows}])
        for task, rows in (("qa_eng", turns), ("choice_eng", choice), ("mf", finds))
    ]
    prepared(tmp_path, "scbench", *files)
    examples, texts = read(tmp_path, "scbench", "qa_eng")
    assert {e.context for e in examples} == {"Book."} and [e.id for e in examples] == [
        f"qa_eng-7-{n}" for n in (1, 2, 3)
    ]
    assert texts[1] == (
        "Read the book and answer the question. Be very concise in your answer.\n\nBook.\n\nQuestion: Q1?\nAnswer:"
    )
    [example], [text] = read(tmp_path, "scbench", "choice_eng")
    assert example.answers == ("green", "C") and text.endswith("D. black\n\nThe the correct answer is")
    examples, texts = read(tmp_path, "scbench", "mf")
    assert len({e.context for e in examples}) == 1  # its prompt of many questions
    assert texts[1] == "The largest number is: \n\nBook.\n\nWhat is the smallest number?\n\nThe smallest number is: "


# ------------------------------------------------------------------ HELMET


def passages(*texts):
    return [{"title": text.upper(), "text": text, "has_answer": True} for text in texts]


def test_helmet_chooses_demonstrations_as_its_code_does(tmp_path):
    demos = [{"question": f"d{n}?", "answers": [str(n)], "ctxs": passages(f"p{n}")} for n in range(5)]
    demos.insert(3, dict(demos[2]))  # a question on other passages counts once
    rows = [{"question": "Who?", "answers": ["Ann", "A."], "ctxs": passages("one", "two")}]
    folder = tmp_path / "kilt"
    prepared(
        tmp_path,
        "helmet",
        lines(folder / "nq-dev-multikilt_1000_k50_dep6.jsonl", rows),
        lines(folder / "nq-train-multikilt_1000_k3_dep6.jsonl", demos),
    )
    seed = int(hashlib.sha256(b"Who?").hexdigest(), 16) % 2**31
    order = list(dict.fromkeys(demos[i]["question"] for i in numpy.random.default_rng(seed).permutation(len(demos))))
    shown = "".join(f"Document (Title: P{q[1]}): p{q[1]}\n\nQuestion: {q}\nAnswer: {q[1]}\n\n" for q in order[:2])
    [example], [text] = read(tmp_path, "helmet", "nq")
    assert text == (
        "Use the given documents to write a concise and short answer to the question. Write your answer in the "
        f"following format:\nAnswer: [answer]\n\n{shown}Document (Title: ONE): one\n\nDocument (Title: TWO): two\n\n"
        "Question: Who?\nAnswer:"
    )
    assert example.answers == ("Ann", "A.") and example.answer_prefix == "\nAnswer:"
    score = Scorer(["em_contains@answer_line"])
    assert score("Answer: it was Ann\n", example.answers, example)["em_contains@answer_line"] == 1


def test_helmet_recall_and_popularity(tmp_path):
    pairs = [["k1", "v1"], ["k2", "v2"], ["k3", "v3"]]
    keys = {"context": '{"k": "v"}', "question": "k", "answer": "v", "demos": pairs, "num_kvs": 1}
    needle = {"context": "hay", "query": "tin", "type_needle_v": "numbers", "outputs": ["1", "2"]}
    people = [
        {"id": str(n), "question": f"q{n}", "answers": ["a"], "ctxs": passages("p"), "s_pop": 10**n} for n in range(4)
    ]
    prepared(
        tmp_path,
        "helmet",
        lines(tmp_path / "json_kv" / "test_k105_dep6.jsonl", [keys]),
        lines(tmp_path / "ruler" / "niah_multivalue" / "validation_8192.jsonl", [needle]),
        lines(tmp_path / "kilt" / "popqa_test_1000_k50_dep6.jsonl", people),
        lines(tmp_path / "kilt" / "popqa_test_1000_k3_dep6.jsonl", people),
    )
    [example], [text] = read(tmp_path, "helmet", "json_kv")
    assert text == (
        '{"k": "v"}\n\nExtract the value corresponding to the specified key in the JSON object below.\n\nKey: k1\n'
        "Corresponding value: v1\n\nKey: k2\nCorresponding value: v2\n\nKey: k\nCorresponding value:"
    )
    [example], [text] = read(tmp_path, "helmet", "niah_multivalue")
    assert text == (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you "
        "about the numbers afterwards.\nhay\nWhat are all the special magic numbers for tin mentioned in the provided "
        "text?\n"
        "The special magic numbers for tin mentioned in the provided text are"
    )
    asked = [e.id.partition("-")[2] for e in read(tmp_path, "helmet", "popqa")[0]]
    assert asked == ["0-0", "1-1", "2-2"]  # 10^3 views and more are left out, and nobody demonstrates themselves
    assert all(f"Question: q{n}\nAnswer: a" not in text for n, text in enumerate(read(tmp_path, "helmet", "popqa")[1]))


# ------------------------------------------------------------------ tasks and files


@pytest.mark.parametrize("format", SUITES)
def test_the_yaml_of_a_suite_has_each_task_with_its_prompt_limit_and_metrics(format):
    tasks = suite_yaml(format).tasks
    assert set(tasks) == {task.removesuffix("_e") for task in SUITES[format].tasks}
    for task in tasks:
        cfg = resolved(format, task=task)
        assert cfg.dataset.tasks is None and "{question}" in cfg.prompt.template and cfg.generation.max_new_tokens > 1
        assert [split_name(name)[0] in METRICS for name in cfg.dataset.metrics] == [True]
        DataPipeline().prompt({**cfg.prompt, "chat": False})


def test_wrong_tasks_splits_and_files_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BREVIARY_DATA", str(tmp_path))
    [problem] = instantiate(resolved("scbench", task="kw").dataset).problems(["test"])
    assert problem.startswith("dataset.task is 'kw'; allowed are kv, prefix_suffix, ") and "dataset.task=kv" in problem
    problems = SuiteTask("scbench", "kv").problems(["train", "test"])
    assert problems[0].startswith("dataset.train: a suite's task has a test split alone")
    assert "download SCBench, nine tasks of shared contexts from https://huggingface.co" in problems[1]
    with pytest.raises(ValueError, match="no file of a task of scbench; tasks are kv, "):
        suite_files("scbench", [tmp_path])
    first, second = (lines(tmp_path / "json_kv" / name, [{}]) for name in ("a.jsonl", "b.jsonl"))
    with pytest.raises(
        ValueError, match=r"json_kv: 2 files of questions \(.*a.jsonl, .*b.jsonl\); give the one of one"
    ):
        suite_files("helmet", [tmp_path / "json_kv"])
    for words, message in (
        (["helmet", "--test", first], "json_kv: "),
        (["helmet", "--train", first], "has a test split alone, in a folder of its name: leave out --train"),
        (["scbench"], "no files: name the suite's files or their folder with --test"),
    ):
        with pytest.raises(SystemExit) as stop:
            prepare_data.main(words)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.glob("helmet/*"))


def test_tasks_may_be_added_but_not_written_twice(tmp_path, capsys):
    row = {"id": 1, "context": "c", "multi_turns": [{"input": "i", "answer": "a"}]}
    files = [lines(tmp_path / f"scbench_{task}.jsonl", [row]) for task in ("kv", "vt")]
    folder = prepared(tmp_path, "scbench", files[0])
    assert prepared(tmp_path, "scbench", files[1]) == folder
    assert sorted(file.name for file in folder.iterdir()) == ["kv.jsonl.gz", "vt.jsonl.gz"]
    with pytest.raises(SystemExit):
        prepared(tmp_path, "scbench", *files)
    assert "already has kv, vt; remove their files or name another --output" in capsys.readouterr().err
