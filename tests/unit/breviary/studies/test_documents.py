"""Documents of exactly n tokens, and the entropy ladder."""

import pytest

from breviary.studies.documents import AS_IS, apply_rung, cut_documents, exact_pieces, is_held_out, rung_names
from breviary.studies.entropy import unigram_entropy, zlib_ratio
from data.text_sources import DrawnWords, Source


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.fixture(scope="module")
def sources():
    return DrawnWords(size=8, words=150, seed=3).sources()


@pytest.fixture(scope="module")
def documents(sources, tokenizer):
    return cut_documents("drawn", sources, tokenizer, 20, 24, 0)


# ------------------------------------------------------------------ cutting


def test_every_piece_has_exactly_n_tokens(documents, tokenizer, sources):
    assert len(documents) == 24 and len({d.doc_id for d in documents}) == 24 and len({d.text for d in documents}) == 24
    texts = {source.name: source.text for source in sources}
    for document in documents:
        assert len(ids(tokenizer, document.text)) == 20 and document.text in texts[document.source]
        assert not document.text[0].isspace() and document.transform == AS_IS
    counts = [sum(d.source == source.name for d in documents) for source in sources]
    assert counts == [3] * 8  # one of each source in turn


def test_cuts_inside_a_character_or_word_are_skipped(tokenizer):
    text = "tok élan — “naïve” ☃ \U0001f600\U0001f600 漢字 strange wörds " * 6
    pieces = [piece for _, piece in exact_pieces(text, tokenizer, 7)]
    assert pieces and all(len(ids(tokenizer, piece)) == 7 and "\ufffd" not in piece for piece in pieces)


def test_short_texts_have_no_pieces_and_other_types_are_errors(tokenizer):
    for text in ("", "   \n", "red"):
        assert not list(exact_pieces(text, tokenizer, 4))
    for wrong in (None, b"red blue", "a\x00b"):
        with pytest.raises(ValueError, match="no text"):
            list(exact_pieces(wrong, tokenizer, 4))
    with pytest.raises(ValueError, match="at least 1"):
        list(exact_pieces("red", tokenizer, 0))
    with pytest.raises(ValueError, match="stories: only 0 documents of 50 tokens can be cut from 2 texts, but 3 are"):
        cut_documents("stories", [Source("a", ""), Source("b", "red blue")], tokenizer, 50, 3, 0)


def test_the_side_of_the_split_depends_on_the_name_only():
    sides = [is_held_out(f"source {i}", 0.3) for i in range(1000)]
    assert sides == [is_held_out(f"source {i}", 0.3) for i in range(1000)] and 0.25 < sum(sides) / 1000 < 0.35


# ------------------------------------------------------------------ the ladder


def test_rungs_have_n_tokens_and_the_words_of_their_transform(documents, tokenizer):
    document, n = documents[0], 20
    words = document.text.split()
    repeated = apply_rung(document, "repeat2", tokenizer, n, 0).text.split()
    assert set(repeated[:-1]) == set(words[:2]) and repeated[:2] == words[:2]
    shuffled = apply_rung(document, "shuffle0", tokenizer, n, 0).text.split()
    assert shuffled != words and set(shuffled[:-1]) <= set(words)
    near = apply_rung(document, "shuffle2", tokenizer, n, 0).text.split()
    assert all(set(near[i : i + 2]) == set(words[i : i + 2]) for i in range(0, len(near) - 3, 2))
    for rung in rung_names([2], [0, 2], [0, 0.5, 1]):
        changed = apply_rung(document, rung, tokenizer, n, 0)
        assert len(ids(tokenizer, changed.text)) == n
        assert (changed.doc_id, changed.source, changed.transform) == (
            f"{document.doc_id}#{rung}",
            document.source,
            rung,
        )
        assert apply_rung(document, rung, tokenizer, n, 0) == changed  # deterministic
    assert apply_rung(document, "random0", tokenizer, n, 0).text == document.text
    with pytest.raises(ValueError, match="no rung"):
        apply_rung(document, "reverse", tokenizer, n, 0)


def test_entropy_rises_along_the_ladder(documents, tokenizer):
    """Repetition lowers and random tokens raise zlib ratio and token entropy of the same documents."""

    def mean(rung, measure):
        texts = [d.text if rung == AS_IS else apply_rung(d, rung, tokenizer, 20, 0).text for d in documents]
        return sum(map(measure, texts)) / len(texts)

    frequency = lambda text: unigram_entropy(ids(tokenizer, text))
    assert mean("repeat2", zlib_ratio) < mean(AS_IS, zlib_ratio)  # random tokens are longer, which lowers zlib's ratio
    entropies = [mean(rung, frequency) for rung in ("repeat2", AS_IS, "random0.5", "random1")]
    assert entropies == sorted(entropies) and len(set(entropies)) == 4
