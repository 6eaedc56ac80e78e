"""Sources of text, documents of exactly n tokens, and the entropy ladder."""

import json

import pytest

from breviary.studies.entropy import unigram_entropy, zlib_ratio
from data.documents import AS_IS, cut, documents, held_out, rungs, transformed
from data.text_sources import Arithmetic, Contexts, DrawnWords, PythonCode, Source


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.fixture(scope="module")
def sources():
    return DrawnWords(size=8, words=150, seed=3).sources()


@pytest.fixture(scope="module")
def found(sources, tokenizer):
    return documents("drawn", sources, tokenizer, 20, 24, 0)


# ------------------------------------------------------------------ sources


def test_contexts_are_read_once_and_passages_by_title(tmp_path):
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


def test_python_code_without_its_licence(tmp_path, monkeypatch):
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


def test_arithmetic_is_right():
    lines = [line for source in Arithmetic(size=3, lines=20).sources() for line in source.text.splitlines()]
    assert len(lines) == 60 and all(eval(line.replace(" = ", " == ")) for line in lines)
    assert Arithmetic(seed=1, size=1).sources() != Arithmetic(seed=2, size=1).sources()
    assert "lines" in Arithmetic(lines=0).problems()[0] and "words" in DrawnWords(words=0).problems()[0]


def test_drawn_words_follow_one_another():
    words = [source.text.split() for source in DrawnWords(size=20, words=300, vocabulary=40).sources()]
    after = {}
    for text in words:
        for one, two in zip(text, text[1:]):
            after.setdefault(one, set()).add(two)
    # Six followers are drawn for each; a name drawn twice has one entry, so never more than six.
    assert len(after) > 20 and max(map(len, after.values())) <= 6


# ------------------------------------------------------------------ cutting


def test_every_piece_has_exactly_n_tokens(found, tokenizer, sources):
    assert len(found) == 24 and len({d.doc_id for d in found}) == 24 and len({d.text for d in found}) == 24
    texts = {source.name: source.text for source in sources}
    for document in found:
        assert len(ids(tokenizer, document.text)) == 20 and document.text in texts[document.source]
        assert not document.text[0].isspace() and document.transform == AS_IS
    counts = [sum(d.source == source.name for d in found) for source in sources]
    assert counts == [3] * 8  # one of each source in turn


def test_cuts_that_fall_into_a_character_or_word_are_left_out(tokenizer):
    text = "tok élan — “naïve” ☃ \U0001f600\U0001f600 漢字 strange wörds " * 6
    pieces = [piece for _, piece in cut(text, tokenizer, 7)]
    assert pieces and all(len(ids(tokenizer, piece)) == 7 and "\ufffd" not in piece for piece in pieces)


def test_short_empty_and_other_texts(tokenizer):
    assert list(cut("", tokenizer, 4)) == list(cut("   \n", tokenizer, 4)) == list(cut("red", tokenizer, 4)) == []
    for wrong in (None, b"red blue", "a\x00b"):
        with pytest.raises(ValueError, match="no text"):
            list(cut(wrong, tokenizer, 4))
    with pytest.raises(ValueError, match="at least 1"):
        list(cut("red", tokenizer, 0))
    with pytest.raises(ValueError, match="stories: only 0 documents of 50 tokens can be cut from 2 texts; 3 were"):
        documents("stories", [Source("a", ""), Source("b", "red blue")], tokenizer, 50, 3, 0)


def test_a_side_of_the_split_is_a_function_of_the_name():
    kept = [held_out(f"source {i}", 0.3) for i in range(1000)]
    assert kept == [held_out(f"source {i}", 0.3) for i in range(1000)] and 0.25 < sum(kept) / 1000 < 0.35


# ------------------------------------------------------------------ the ladder


def test_rungs_have_n_tokens_and_their_own_words(found, tokenizer):
    document, n = found[0], 20
    words = document.text.split()
    repeated = transformed(document, "repeat2", tokenizer, n, 0).text.split()
    assert set(repeated[:-1]) == set(words[:2]) and repeated[:2] == words[:2]
    shuffled = transformed(document, "shuffle0", tokenizer, n, 0).text.split()
    assert shuffled != words and set(shuffled[:-1]) <= set(words)
    near = transformed(document, "shuffle2", tokenizer, n, 0).text.split()
    assert all(set(near[i : i + 2]) == set(words[i : i + 2]) for i in range(0, len(near) - 3, 2))
    for rung in rungs([2], [0, 2], [0, 0.5, 1]):
        changed = transformed(document, rung, tokenizer, n, 0)
        assert len(ids(tokenizer, changed.text)) == n
        assert (changed.doc_id, changed.source, changed.transform) == (
            f"{document.doc_id}#{rung}",
            document.source,
            rung,
        )
        assert transformed(document, rung, tokenizer, n, 0) == changed  # the same whenever it is asked
    assert transformed(document, "random0", tokenizer, n, 0).text == document.text
    with pytest.raises(ValueError, match="no rung"):
        transformed(document, "reverse", tokenizer, n, 0)


def test_the_ladder_climbs(found, tokenizer):
    """Repetition lowers, drawn tokens raise what zlib and token frequencies say of the same documents."""

    def mean(rung, measure):
        texts = [d.text if rung == AS_IS else transformed(d, rung, tokenizer, 20, 0).text for d in found]
        return sum(map(measure, texts)) / len(texts)

    frequency = lambda text: unigram_entropy(ids(tokenizer, text))
    assert mean("repeat2", zlib_ratio) < mean(AS_IS, zlib_ratio)  # drawn tokens are longer, zlib's own bytes fewer
    climb = [mean(rung, frequency) for rung in ("repeat2", AS_IS, "random0.5", "random1")]
    assert climb == sorted(climb) and len(set(climb)) == 4
