"""Which words are worth asking for: names, numbers, rare words."""

import pytest

from data.cloze_spans import Frequencies, occurrences, sentences, spans

SMALL = Frequencies(["the town stood on a river and was burned", "during the war it was rebuilt"])


def found(text, max_words=5, max_texts=1, frequencies=SMALL, rare=False):
    frequencies = frequencies or Frequencies([text])
    return [text[s.start : s.end] for s in spans(text, frequencies, max_words, max_texts) if s.is_rare_word == rare]


def test_sentences_end_at_full_stops_but_not_after_initials():
    text = 'It was mapped by J. Smith of St. Ives. He said "yes." Then? In 1901\nit fell.'
    assert [text[a:b] for a, b in sentences(text)] == [
        "It was mapped by J. Smith of St. Ives.",
        'He said "yes."',
        "Then?",
        "In 1901",
        "it fell.",
    ]
    assert sentences("  \n ") == []


@pytest.mark.parametrize(
    "text, names",
    [
        ("it was burned by Anna Maria Kowal in 1871.", ["Anna Maria Kowal", "1871"]),
        (
            "During the war Velkeld, Druminne (Quiloth) fell.",
            ["Velkeld", "Druminne", "Quiloth"],
        ),  # "During" is a common word
        ("Velkeld fell on 14 May 1871, at night.", ["Velkeld", "14 May 1871"]),
        ("the town's Zorvane's end", ["Zorvane"]),  # a possessive is no part of a name
        ("One Two Three Four Five Six ran on to Kowal", ["Kowal"]),  # longer than an answer may be
        ("Kowal saw kowal and Brem", ["Brem"]),  # stands twice, case aside
    ],
)
def test_names_and_numbers(text, names):
    assert found(text) == names


def test_rare_words_stand_in_few_texts():
    corpus = Frequencies(["the quiet harbour", "the harbour", "the harbour", "Harbour town"])
    assert (corpus.texts, corpus.of("HARBOUR"), corpus.of("quiet"), corpus.of("no")) == (4, 4, 1, 0)
    text = "the quiet harbour"
    assert found(text, max_texts=1, frequencies=corpus, rare=True) == ["quiet"]
    assert found(text, max_texts=4, frequencies=corpus, rare=True) == ["quiet", "harbour"]
    assert found("at Harbour town", max_texts=3, frequencies=corpus) == []


def test_a_span_knows_its_sentence():
    text = "it was rebuilt. Later Velkeld fell."
    [span] = spans(text, Frequencies(["later"]), 5, 1)[1:]
    assert text[span.start : span.end] == "Velkeld" and text[span.first : span.last] == "Later Velkeld fell."


def test_occurrences_are_whole_words():
    assert occurrences("Ann", "Ann saw Anna and ann's Ann.") == 3
    assert occurrences("C++ (1985", "in C++ (1985)") == 1 and occurrences("x", "") == 0
