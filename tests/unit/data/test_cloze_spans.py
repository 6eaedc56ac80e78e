"""Candidate answers of cloze questions: names, numbers, rare words."""

import pytest

from data.cloze_spans import DocumentFrequencies, candidate_spans, count_occurrences, sentence_spans

SMALL = DocumentFrequencies(["the town stood on a river and was burned", "during the war it was rebuilt"])


def candidates(text, max_words=5, max_texts=1, frequencies=SMALL, rare=False):
    frequencies = frequencies or DocumentFrequencies([text])
    return [
        text[s.start : s.end]
        for s in candidate_spans(text, frequencies, max_words, max_texts)
        if s.is_rare_word == rare
    ]


def test_sentences_end_at_full_stops_except_after_initials():
    text = 'It was mapped by J. Smith of St. Ives. He said "yes." Then? In 1901\nit fell.'
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "It was mapped by J. Smith of St. Ives.",
        'He said "yes."',
        "Then?",
        "In 1901",
        "it fell.",
    ]
    assert sentence_spans("  \n ") == []


@pytest.mark.parametrize(
    "text, names",
    [
        ("it was burned by Anna Maria Kowal in 1871.", ["Anna Maria Kowal", "1871"]),
        (
            "During the war Velkeld, Druminne (Quiloth) fell.",
            ["Velkeld", "Druminne", "Quiloth"],
        ),  # "during" occurs in lower case
        ("Velkeld fell on 14 May 1871, at night.", ["Velkeld", "14 May 1871"]),
        ("the town's Zorvane's end", ["Zorvane"]),  # the possessive is removed
        ("One Two Three Four Five Six ran on to Kowal", ["Kowal"]),  # the run exceeds max_words
        ("Kowal saw kowal and Brem", ["Brem"]),  # Kowal occurs twice, ignoring case
    ],
)
def test_names_and_numbers(text, names):
    assert candidates(text) == names


def test_rare_words_occur_in_few_texts():
    corpus = DocumentFrequencies(["the quiet harbour", "the harbour", "the harbour", "Harbour town"])
    assert (corpus.num_texts, corpus.count("HARBOUR"), corpus.count("quiet"), corpus.count("no")) == (4, 4, 1, 0)
    text = "the quiet harbour"
    assert candidates(text, max_texts=1, frequencies=corpus, rare=True) == ["quiet"]
    assert candidates(text, max_texts=4, frequencies=corpus, rare=True) == ["quiet", "harbour"]
    assert candidates("at Harbour town", max_texts=3, frequencies=corpus) == []


def test_a_span_has_its_sentence():
    text = "it was rebuilt. Later Velkeld fell."
    [span] = candidate_spans(text, DocumentFrequencies(["later"]), 5, 1)[1:]
    assert (
        text[span.start : span.end] == "Velkeld"
        and text[span.sentence_start : span.sentence_end] == "Later Velkeld fell."
    )


def test_whole_words_are_counted():
    assert count_occurrences("Ann", "Ann saw Anna and ann's Ann.") == 3
    assert count_occurrences("C++ (1985", "in C++ (1985)") == 1 and count_occurrences("x", "") == 0
