"""Sources of running text: JSONL contexts, Python code, arithmetic, random words."""

import json

import pytest

from data.text_sources import Arithmetic, Contexts, DrawnWords, PythonCode, Source


def test_contexts_are_distinct_and_passages_are_named_by_title(tmp_path):
    file = tmp_path / "train.jsonl"
    passages = [
        {"title": "Moon", "text": "The moon is white.", "is_gold": True},
        {"title": "Sun", "text": "Hot.", "is_gold": False},
    ]
    context = "Document [1](Title: Moon) The moon is white.\n\nDocument [2](Title: Sun) Hot."
    rows = [
        {"id": str(i), "context": context, "question": "?", "answers": ["a"], "documents": passages} for i in range(2)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [source.text for source in Contexts(str(file)).sources()] == [context]
    assert set(Contexts([str(file)], passages=True).sources()) == {
        Source("Moon", "The moon is white."),
        Source("Sun", "Hot."),
    }
    file.write_text(json.dumps(rows[0] | {"documents": None}))
    with pytest.raises(ValueError, match="passages=false"):
        Contexts(str(file), passages=True).sources()
    assert "not a file" in Contexts(str(tmp_path / "absent")).problems()[0] and Contexts([]).problems()


def test_python_code_without_leading_comments(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "b.py").write_bytes(b"# Licence\n#\n\nx = 1  # kept\n# kept\ny = '\xff'\n")
    monkeypatch.syspath_prepend(tmp_path)
    texts = {source.name: source.text for source in PythonCode(["some_package"]).sources()}
    assert texts == {"some_package/__init__.py": "", "some_package/inner/b.py": "x = 1  # kept\n# kept\ny = ''\n"}
    assert len(PythonCode(["some_package"], max_files=1).sources()) == 1
    problems = PythonCode(["no_such_package", "json.tool", "sys"], max_files=0).problems()
    assert len(problems) == 4 and "'no_such_package'" in problems[0] and "max_files" in problems[3]


def test_arithmetic_is_correct():
    lines = [line for source in Arithmetic(size=3, lines=20).sources() for line in source.text.splitlines()]
    assert len(lines) == 60 and all(eval(line.replace(" = ", " == ")) for line in lines)
    assert Arithmetic(seed=1, size=1).sources() != Arithmetic(seed=2, size=1).sources()
    assert "lines" in Arithmetic(lines=0).problems()[0] and "words" in DrawnWords(words=0).problems()[0]


def test_random_words_follow_a_markov_chain():
    words = [source.text.split() for source in DrawnWords(size=20, words=300, vocabulary=40).sources()]
    after = {}
    for text in words:
        for one, two in zip(text, text[1:]):
            after.setdefault(one, set()).add(two)
    # Each word has six random followers; duplicate words share an entry, so there are at most six.
    assert len(after) > 20 and max(map(len, after.values())) <= 6
