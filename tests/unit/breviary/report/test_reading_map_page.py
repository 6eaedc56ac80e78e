"""The page of a reading map: the whole text in order, marks on the right characters, foreign text escaped."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading_map_pages import STYLE, TEXT, byte_offsets, card, parsed

from breviary.memory.trace import TokenSpan, spans_from_trace
from breviary.report.reading_map_marks import LEVELS, character_spans, share_levels
from breviary.report.reading_map_page import render_page
from tests.traces import ram_trace

# ------------------------------------------------------------------ characters of tokens


@given(st.text(max_size=30), st.data())
def test_character_spans_cover_the_text_in_order(text, data):
    bytes_of = byte_offsets(text)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(bytes_of) - 1, 1)), max_size=8)) | {0, len(bytes_of)})
    cuts = [cut for cut in cuts if cut <= len(bytes_of)]
    offsets = [(bytes_of[a][0], bytes_of[b - 1][1]) for a, b in zip(cuts, cuts[1:])]  # tokens of several bytes
    hidden = data.draw(st.sets(st.integers(0, 8)))
    spans = character_spans(text, [pair for i, pair in enumerate(offsets) if i not in hidden])
    assert "".join(text[start:end] for start, end, _ in spans) == text
    assert all(start < end for start, end, _ in spans)
    tokens = [token for *_, token in spans if token is not None]
    assert tokens == sorted(tokens)


def test_a_character_of_several_tokens_belongs_to_the_first():
    assert byte_offsets("a😀b") == ((0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3))
    assert character_spans("a😀b", byte_offsets("a😀b")) == [(0, 1, 0), (1, 2, 1), (2, 3, 5)]
    assert character_spans("é!", [(0, 1), (0, 2)]) == [(0, 1, 0), (1, 2, 1)]  # a token that begins within a character


def test_white_space_without_token_belongs_to_the_next_token_and_at_the_end_to_the_last():
    assert character_spans(" ab  cd \n", [(1, 3), (5, 7)]) == [(0, 3, 0), (3, 7, 1), (7, 9, 1)]


def test_other_characters_without_token_are_marked():
    assert character_spans("ab cut cd", [(0, 2), (7, 9)]) == [(0, 2, 0), (2, 7, None), (7, 9, 1)]
    assert character_spans("ab", []) == [(0, 2, None)] and character_spans("", []) == []


def test_spans_and_gold_must_match_the_tokens():
    with pytest.raises(AssertionError):
        card("abc", spans=(TokenSpan("kept", 2),))
    with pytest.raises(AssertionError):
        card("abc", gold=(True,))


# ------------------------------------------------------------------ marks


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_marks_start_at_the_first_byte_of_a_character(size):
    tokens = len(byte_offsets(TEXT))
    segments = -(-tokens // size)
    kept = [i % 3 == 1 for i in range(segments)]
    gold = tuple(t % 7 < 3 for t in range(tokens))
    trace = ram_trace(kept, [i / 100 for i in range(segments)], tokens, size)
    page = parsed(card(TEXT, spans=spans_from_trace(tokens, trace, size), gold=gold))
    assert page.document() == TEXT
    first_token = {start: t for t, (start, _) in reversed(list(enumerate(byte_offsets(TEXT))))}
    for i, (_, marks) in enumerate(page.characters[0]):
        number = first_token[i] // size
        assert ("kept" in marks) == kept[number] and ("skimmed" in marks) == (not kept[number])
        assert ("gold" in marks) == gold[first_token[i]]
        how = "read closely" if kept[number] else "skimmed into 1 slot"
        assert marks["kept" if kept[number] else "skimmed"].startswith(
            f"segment {number + 1} of {segments}: {how}, relevance {number / 100:.3f} (rank {segments - number}), "
        )


def test_a_skimmed_segment_of_several_slots():
    trace = {"kept": [False, True], "relevance": [0.0, 1.0], "groups": [[0, 0, 1, 1, 2, 3, 4]], "weights": None}
    spans = spans_from_trace(7, trace, 5)
    assert spans == (
        TokenSpan("skimmed", 5, 1, relevance=0.0, slot_sizes=(2, 2, 1)),
        TokenSpan("kept", 2, 2, relevance=1.0),
    )
    page = parsed(card("abcdefg", spans=spans, gold=(False,) * 3 + (True,) * 4))
    assert page.document() == "abcdefg" and page.marked("gold") == "defg" and page.marked("kept") == "fg"
    assert page.marked("slot") == "ce"  # first characters of further slots; "d" starts a run of gold evidence
    assert page.characters[0][0][1]["skimmed"] == (
        "segment 1 of 2: skimmed into 3 slots, relevance 0.000 (rank 2), 5 tokens, 2 of gold evidence"
    )


def test_skimmed_segments_are_shaded_by_the_rank_of_their_relevance():
    def shades(*relevance):
        spans = tuple(TokenSpan("skimmed", 1, i + 1, relevance=value) for i, value in enumerate(relevance))
        page = parsed(card("abcde"[: len(spans)], spans=spans))
        return [next(name for name in marks if re.fullmatch(r"r\d", name)) for _, marks in page.characters[0]]

    assert shades(0.75, 0.25, 0.5) == [f"r{LEVELS - 1}", "r0", "r4"]
    assert shades(-0.5, -0.5) == ["r4", "r4"]
    assert shades(-0.9, 0.51, 0.5, 0.52) == ["r0", "r5", "r2", "r7"]  # an outlier does not compress the other ranks


def share_marks(page):
    """The level of each character's share."""
    return [int("".join(name[1:] for name in marks if re.fullmatch(r"s\d", name))) for _, marks in page.characters[0]]


def test_tokens_of_groups_are_shaded_by_their_share_of_the_slot():
    trace = {"groups": [[0, 1, 1, 1, 1, 2, 2, 2, 2, 2]], "weights": [[1.0, 0.1, 0.2, 0.3, 0.4, *[0.2] * 5]]}
    page = parsed(card("abcdefghij", spans=spans_from_trace(10, trace), gold=(False,) * 4 + (True,) + (False,) * 5))
    levels = share_marks(page)
    assert levels[0] == LEVELS - 1 and levels[1] == 0 and levels[1] < levels[2] < levels[3] < levels[4] < levels[0]
    assert set(levels[5:]) == {levels[2]}  # an equal share of 1/5 is a share of .2
    marks = [marks for _, marks in page.characters[0]]
    assert ["odd" in mark for mark in marks] == [True, *[False] * 4, *[True] * 5]  # neighbours differ
    assert marks[3]["group"] == "slot 2 of 3: 4 tokens; shares: b 0.100, c 0.200, d 0.300, e 0.400, 1 of gold evidence"
    assert page.marked("gold") == "e" and "a token's share of its slot 0.100 to 1.000" in "".join(page.text)


def test_small_differences_of_shares_span_all_levels():
    """Weights of merged tokens differ by a few percent: the scale is the context's own range."""
    weights = [0.25 + 0.002 * (i - 1.5) for i in range(4)] * 25
    spans = spans_from_trace(100, {"groups": [[i // 4 for i in range(100)]], "weights": [weights]})
    assert sorted(set(share_levels(spans))) == [0, 2, 5, LEVELS - 1]
    alone = spans_from_trace(101, {"groups": [[i // 4 for i in range(101)]], "weights": [[*weights, 1.0]]})
    assert share_levels(alone)[:100] == share_levels(spans)  # a token with a slot of its own hides no difference


def test_equal_shares_have_the_middle_level():
    sizes = [0] * 4 + [1] * 4 + [2] * 4
    assert set(share_levels(spans_from_trace(12, {"groups": [sizes], "weights": None}))) == {LEVELS // 2}
    assert share_levels(spans_from_trace(3, {"groups": [[0, -1, -1]], "weights": None})) == [LEVELS // 2, None, None]


def test_groups_without_weights():
    page = parsed(card("abcd", spans=spans_from_trace(4, {"groups": [[0, 0, 1, 1]], "weights": None})))
    assert page.marked("group") == "abcd"
    assert page.characters[0][0][1]["group"] == "slot 1 of 2: 2 tokens, equal shares of 0.500"


def test_a_note_of_an_interrupted_group_states_how_many_tokens_are_here():
    page = parsed(card("abc", spans=spans_from_trace(3, {"groups": [[0, 1, 0]], "weights": None})))
    assert page.characters[0][2][1]["group"] == "slot 1 of 2: 2 tokens, 1 of them here, equal shares of 0.500"


def test_weights_that_are_all_zero():
    page = parsed(card("ab", spans=spans_from_trace(2, {"groups": [[0, 0]], "weights": [[0.0, 0.0]]})))
    assert page.marked("s0") == "ab"


def test_every_mark_can_be_focused_and_has_its_numbers_as_a_label():
    """Pointers are not required: touch and the tab key reach every mark, and no number is in a title alone."""
    spans = (TokenSpan("kept", 2), TokenSpan("dropped", 3), TokenSpan("group", 1, 1, 1))
    page = parsed(card("abcdef-cut", byte_offsets("abcdef"), spans))
    attributes = {
        name: [value for _, key, value in page.attributes if key == name] for name in ("tabindex", "aria-label")
    }
    assert attributes["aria-label"] == [
        "2 tokens kept, a slot each",
        "3 tokens in no slot",
        "slot 1 of 1: 1 token, alone",
        "4 characters not read: truncated from the context",
    ]
    assert attributes["tabindex"] == [*["0"] * 4, "-1"]  # -1: the end of the document, reached by its skip link
    assert not [value for _, key, value in page.attributes if key == "title"]
    style = STYLE.read_text()
    for state in ("hover", "focus"):
        assert re.search(rf"\.document \[aria-label\]:{state}::after", style)
    assert "content: attr(aria-label)" in style and re.search(r"^:focus \{ outline: 3px", style, re.MULTILINE)
    assert 'tabindex="0"' not in render_page((), [card("abc")])  # a mark without numbers is no stop


def test_tokens_of_a_cache_are_shaded_by_the_share_of_layers_and_heads_that_keep_them():
    trace = {"kept_share": [0.0, 0.25, 0.5, 1.0] * 5 + [0.0] * 3}  # padded to the longest context of its batch
    spans = spans_from_trace(20, trace)
    assert [(span.kind, span.tokens) for span in spans] == [("cache", 16), ("cache", 4)]
    page = parsed(card("abcdefghijklmnopqrst", spans=spans, gold=(False,) * 3 + (True,) + (False,) * 16))
    assert share_marks(page)[:4] == [0, 0, 4, LEVELS - 1]
    assert page.characters[0][16][1]["cache"] == (
        "tokens 17 to 20; kept by this share of layers and heads: q 0.000, r 0.250, s 0.500, t 1.000"
    )
    text = "".join(page.text)
    assert "a token is kept by 0.000 to 1.000 of layers and heads" in text
    assert "keep a token: 1.000 for gold evidence, 0.408 elsewhere" in text


def test_truncated_text_inside_a_segment_is_marked_as_cut():
    context = "start of it, the middle, the end"
    offsets = tuple((i, i + 1) for i in range(len(context)) if i < 5 or i >= len(context) - 5)
    page = parsed(card(context, offsets, (TokenSpan("kept", 10, 1, relevance=0.5),)))
    assert page.document() == context
    assert (page.marked("kept"), page.marked("cut")) == ("starte end", context[5:-5])
    text = "".join(page.text)
    assert f"{len(context) - 10} of {len(context)} characters not read" in text and "cut: not read" in text


def test_segments_are_also_listed_in_a_table():
    trace = ram_trace([False, True], [0.125, 0.5], 5, 3)
    text = render_page((), [card("abcde", spans=spans_from_trace(5, trace, 3), gold=(True,) + (False,) * 4)])
    rows = re.findall(r"<tr class=\"\w+\">(.*?)</tr>", text)
    assert [re.findall(r"<td>(?:<bdi>)?(.*?)(?:</bdi>)?</td>", row) for row in rows] == [
        ["1", "skimmed into 1 slot", "0.125", "gold", "abc"],
        ["2", "read closely", "0.500", "", "de"],
    ]


# ------------------------------------------------------------------ words


def test_verdicts():
    cards = [card(), card(exact=False, f1=0.5), card(exact=False, f1=0.0)]
    assert [c.verdict for c in cards] == ["right", "partly right", "wrong"]
    text = "".join(parsed(*cards).text)
    assert text.count("✓ right") == text.count("✗ wrong") == text.count("partly right, F1 0.50") == 2  # index and card
    assert "1 of 3 exactly right, mean F1 0.50" in text


def test_budget_and_evidence_lines():
    def text(trace, size=None, gold=(True, True) + (False,) * 6, **values):
        return "".join(parsed(card("abcdefgh", spans=spans_from_trace(8, trace, size), gold=gold, **values)).text)

    segments = text(ram_trace([False, True, False], [0, 1, 0.5], 8, 3), 3, slots=5)
    assert "8 context tokens in 5 slots · requested 4x · achieved 1.6x · 1 of 3 segments read closely" in segments
    assert "0 of 1 segments with gold evidence read closely" in segments
    groups = text({"groups": [[0, 1, 2, 2, 2, 3, 3, 3]], "weights": None}, slots=4)
    assert "achieved 2.0x · 4 groups of 1 to 3 tokens" in groups
    assert "mean size of a token's group: 1.0 for gold evidence, 3.0 elsewhere" in groups
    kept = text({"kept": [True] * 3 + [False] * 5}, slots=3)
    assert "3 of 8 tokens kept" in kept and "2 of 2 gold tokens kept" in kept
    nothing = text({"kept": [False] * 8}, slots=0, gold=())
    assert "nothing kept · 0 of 8 tokens kept" in nothing and "gold" not in nothing.lower()
    assert "slots · no requested budget · achieved" in text({}, requested=None)


def test_an_empty_context():
    page = parsed(card("", slots=0, prediction=""))
    assert page.characters == [] and "The context is empty." in "".join(page.text)
    assert "(empty answer)" in "".join(page.text)


def test_the_legend_explains_only_what_occurs():
    def legend(one):
        return re.search(r'<section class="legend">(.*?)</section>', render_page((), [one]), re.DOTALL)[1]

    segments = legend(
        card("abc", spans=(TokenSpan("kept", 1, 1, relevance=1.0), TokenSpan("skimmed", 2, 2, relevance=0.0)))
    )
    assert all(f'class="r{level}"' in segments for level in range(LEVELS))
    assert "read closely" in segments and "skimmed" in segments and "group" not in segments and "gold" not in segments
    groups = legend(
        card("ab", spans=spans_from_trace(2, {"groups": [[0, 0]], "weights": [[0.5, 0.5]]}), gold=(True, False))
    )
    assert all(f'class="s{level}"' in groups for level in range(LEVELS)) and "r4" not in groups
    assert (
        "own range" in " ".join(groups.split())
        and "gold" in groups
        and "skimmed" not in groups
        and "dropped" not in groups
    )
