"""ram.labels: tokens and segments that hold the answer (spec 5: 11)."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from breviary.contract import Document, Example
from data.collate import Collator
from data.prompts import Prompt
from data.tokenised import tokenise_split
from ram.labels import answer_spans, answer_tokens, positive_segments, positive_tokens

WORDS = (" red", " green", " copper", " iron", " horse", " plum")  # one token each
LETTERS = "aAbB1 .-\u00df\u0130\u6771"  # both cases, letters that fold to two, a script without spaces


def example(context, *answers, gold=()):
    documents = tuple(Document("", start, end, is_gold=True) for start, end in gold)
    return Example("0", context, "Which?", answers or ("absent",), documents)


def occurrences(context, *answers, ignore_case=True):
    """The text of every occurrence."""
    spans = answer_spans(example(context, *answers), ignore_case)
    return [context[start:end] for start, end in spans]


def marked(batch, marks, tokenizer, row=0):
    """The text of the marked tokens."""
    return tokenizer.decode(batch.context.ids[row][marks[row]])


# ---- occurrences in the text ----


def test_every_occurrence_of_every_answer_is_found():
    text = "red blue red, and (red) or copper"
    assert answer_spans(example(text, "red")) == [(0, 3), (9, 12), (19, 22)]
    assert occurrences(text, "copper", "red") == ["red", "red", "red", "copper"]
    assert answer_spans(example("ana ana ana", "ana ana")) == [(0, 7), (4, 11)]


def test_absent_and_empty_answers_are_not_found():
    assert occurrences("red blue", "green") == occurrences("red blue", "", "  ") == occurrences("", "red") == []


def test_space_around_an_answer_is_ignored():
    assert answer_spans(example("red blue", " red", "red ", "\nred")) == [(0, 3)]


def test_occurrences_are_whole_words():
    assert occurrences("2010 and 10, 100", "10") == ["10"]
    assert answer_spans(example("redo the red-hot bored", "red")) == [(9, 12)]
    assert occurrences("it is 5.5% or 5", "5.5%") == ["5.5%"]
    assert occurrences("from the U.S.A. to Peru", "U.S.A.") == ["U.S.A."]


def test_scripts_without_spaces_have_no_word_borders():
    assert occurrences("\u79c1\u306f\u6771\u4eac\u306b\u4f4f\u3080", "\u6771\u4eac") == ["\u6771\u4eac"]


def test_ignore_case():
    text = "The RED one, the Red one, the red one"
    assert occurrences(text, "Red") == ["RED", "Red", "red"]
    assert occurrences(text, "Red", ignore_case=False) == ["Red"]


@pytest.mark.parametrize("text", ["STRASSE und Stra\u00dfe, Istanbul", "\u0130zmir und die Stra\u00dfe"])
def test_letters_that_fold_to_two_do_not_shift_offsets(text):
    assert occurrences(text, "Stra\u00dfe")[-1] == "Stra\u00dfe"
    assert occurrences(text, "stra\u00dfe") == occurrences(text, "Stra\u00dfe")
    assert occurrences(text, "UND") == ["und"]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.text(LETTERS, max_size=30), st.text(LETTERS, max_size=3), st.booleans())
def test_occurrences_equal_the_answer(text, answer, ignore_case):
    for occurrence in occurrences(text, answer, ignore_case=ignore_case):
        assert occurrence.casefold() == answer.strip().casefold()
        assert ignore_case or occurrence == answer.strip()


# ---- tokens ----


def test_answer_tokens_overlap_an_occurrence(collate, tokenizer):
    """For an answer within a token, one of many tokens, one after a bracket, and answers at either end."""
    context = "Zorvane (Zorvane) saw Zorvane"
    batch = collate([example(context, "Zorvane"), example(context, "saw"), example(context, "green")])
    marks = answer_tokens(batch)
    starts, ends = batch.offsets[..., 0], batch.offsets[..., 1]
    for row, spans in enumerate(([(0, 7), (9, 16), (22, 29)], [(18, 21)], [])):
        overlap = [
            any(s < last and e > first for first, last in spans)
            for s, e in zip(starts[row].tolist(), ends[row].tolist())
        ]
        assert marks[row].tolist() == overlap
    assert marks[0].sum() > 3  # the tokenizer has no token for this name
    assert marked(batch, marks, tokenizer, 1).strip() == "saw" and not marks[2].any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_never_marked(collate, tokenizer, side):
    batch = collate([example(" red", "red"), example("".join(WORDS * 3), "red"), example("", "red")], side)
    batch.offsets[~batch.context.mask] = torch.tensor([0, 99])  # padding may hold any offsets
    marks = answer_tokens(batch)
    assert not marks[~batch.context.mask].any() and marks.sum(1).tolist() == [1, 3, 0]
    assert marked(batch, marks, tokenizer) == " red" and marked(batch, marks, tokenizer, 1) == " red red red"


def test_bytes_of_a_letter_are_marked_together(collate, tokenizer):
    batch = collate([example("caf\u00e9 and tea", "caf\u00e9"), example("\u6771\u4eac red", "\u4eac")])
    marks = answer_tokens(batch)
    assert marked(batch, marks, tokenizer) == "caf\u00e9" and marked(batch, marks, tokenizer, 1) == "\u4eac"


# ---- segments ----


def segments_of(collate, context, answers, length, **options):
    batch = collate([example(context, *answers)])
    return positive_segments(positive_tokens(batch, **options), length)[0].tolist()


def test_an_answer_across_a_border_marks_both_segments(collate):
    context = "".join(WORDS)  # [red green] [copper iron] [horse plum]
    assert segments_of(collate, context, ["green copper"], 2) == [True, True, False]
    assert segments_of(collate, context, ["green"], 2) == [True, False, False]
    assert segments_of(collate, context, ["green copper iron horse"], 2) == [True] * 3


def test_every_occurrence_marks_its_segment(collate):
    context = "".join(WORDS[:4] + WORDS[:1] + WORDS[:3])  # [red green] [copper iron] [red red] [green copper]
    assert segments_of(collate, context, ["red"], 2) == [True, False, True, False]
    assert segments_of(collate, context, ["red", "iron"], 2) == [True, True, True, False]
    assert segments_of(collate, context, ["plum"], 2) == [False] * 4
    assert segments_of(collate, context, ["RED"], 2, ignore_case=False) == [False] * 4


@pytest.mark.parametrize("tokens, length, segments", [(8, 4, 2), (9, 4, 3), (3, 4, 1), (0, 4, 1), (5, 1, 5)])
def test_there_is_one_mark_per_segment(tokens, length, segments):
    marks = torch.ones(2, tokens, dtype=torch.bool)
    assert positive_segments(marks, length).tolist() == [[tokens > 0] * segments] * 2


# ---- sources of positives ----


def gold_and_bare():
    """Two examples: gold passages "green copper" and "plum" with answer "red"; no gold passage, answer "iron"."""
    return [example("".join(WORDS), "red", gold=[(5, 17), (29, 33)]), example("".join(WORDS), "iron")]


def test_rows_without_gold_passages_use_answers(collate, tokenizer):
    batch = collate(gold_and_bare())
    marks = positive_tokens(batch, "evidence")
    assert marked(batch, marks, tokenizer).split() == ["green", "copper", "plum"]
    assert marked(batch, marks, tokenizer, 1).strip() == "iron"
    by_answers = positive_tokens(batch, "answers")
    assert torch.equal(by_answers, answer_tokens(batch))
    assert marked(batch, by_answers, tokenizer).strip() == "red"
    assert torch.equal(positive_tokens(batch.rows([1])), marks[1:])


def test_without_offsets_only_gold_passages_are_positive(collate):
    batch = collate(gold_and_bare())
    batch.offsets = None
    assert torch.equal(positive_tokens(batch, "evidence"), batch.evidence)
    with pytest.raises(ValueError, match="fast tokenizer .* gold passages .*compressor.positives"):
        positive_tokens(batch, "answers")


@pytest.mark.parametrize("truncation", ["head", "tail", "middle"])
def test_a_truncated_context_has_the_marks_of_the_whole_one(tokenizer, truncation):
    """Offsets refer to the untruncated text."""
    words = "".join(WORDS * 4)
    examples = [example(words, "horse plum red"), example(words, "red", gold=[(5, 17), (29, 37), (95, 110)])]
    whole, cut = (
        Collator(0)([*tokenise_split(examples, tokenizer, Prompt(), limit, None, truncation)]) for limit in (None, 13)
    )
    T = whole.context.ids.shape[1]
    kept = {"head": [*range(13)], "tail": [*range(T - 13, T)], "middle": [*range(7), *range(T - 6, T)]}[truncation]
    assert T == 24 and torch.equal(cut.context.ids, whole.context.ids[:, kept])
    for source in ("evidence", "answers"):
        marks = positive_tokens(cut, source)
        assert torch.equal(marks, positive_tokens(whole, source)[:, kept]) and marks.any(1).all()
