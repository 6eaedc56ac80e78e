"""LLMLingua, LongLLMLingua and Selective Context: the specification's hand cases, and slow twins on a tiny model."""

import math

import pytest
import torch

from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Question
from breviary.selection import reference
from breviary.selection.perplexity import LLMLingua, LongLLMLingua, falling_shares, keep_top, share_budget
from breviary.selection.relevance import Candidates
from breviary.selection.self_information import SelfInformation
from breviary.selection.units import pad_lists

TEXTS = [
    "The moon is white. The sun is yellow.\n\nThe dog has a violin. The ship is copper.\n\nThe cat is red. A town.",
    "red blue green",
    "",
    "One fox.\n\nTwo lions and a bear are green. Steel is zinc. The horse is gold.",
]
QUESTIONS = ["What colour is the sun?", "red?", "", "Which animal is gold?"]


@pytest.fixture(scope="module")
def backbone():
    return TinyBackbone(layers=2)


@pytest.fixture(scope="module")
def decoder(backbone):
    return Stack(backbone.load()).eval()


def prepared(relevance, backbone, decoder):
    relevance.prepare(backbone, decoder)
    return relevance


def tokens(tokenizer, texts):
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids = pad_lists(rows)
    return rows, ids, torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])


@pytest.fixture(scope="module")
def found(tokenizer):
    """candidates(rows, units="passages") of TEXTS and QUESTIONS."""

    def of(rows=slice(None), units="passages"):
        _, ids, mask = tokens(tokenizer, TEXTS[rows])
        _, asked, asked_mask = tokens(tokenizer, QUESTIONS[rows])
        question = Question(asked, asked_mask, None, None)
        return Candidates(ids, mask, question, units, 50, lambda: tokenizer)

    return of


def model(decoder):
    """`reference.Nll` of a decoder."""

    @torch.no_grad()
    def nll(past, text):
        row = torch.tensor([[*past, *text]])
        states = decoder.run(decoder.embed(row), range(len(decoder)), torch.arange(row.shape[1])[None])
        logs = decoder.head(decoder.norm(states))[0].log_softmax(-1)
        places = range(len(past), len(past) + len(text))
        return [-float(logs[t - 1, row[0, t]]) if t else math.inf for t in places]

    return nll


# ------------------------------------------------------------------ hand cases


def test_llmlingua_keeps_what_itself_is_surprising():
    nll = torch.tensor([[torch.inf, 2, 0.1, 3, 0.5, 1]])
    [(segment, count)] = share_budget([(list(range(6)), 0.5)], 100)
    assert (segment, count) == (list(range(6)), 3)
    kept = keep_top(nll, torch.ones(1, 6, dtype=torch.bool), torch.tensor([[count]]))
    assert kept.nonzero()[:, 1].tolist() == [0, 1, 3]


def test_longllmlingua_keeps_what_the_question_makes_likely():
    surprise = LongLLMLingua().surprise([torch.tensor([[3.0, 2, 1]]), torch.tensor([[1.0, 2.5, 0.8]])])
    torch.testing.assert_close(surprise, torch.tensor([[2, -0.5, 0.2]]))


def test_shares_fall_with_the_rank_and_keep_the_budget():
    assert falling_shares([10, 10, 10], 15, 0.3) == pytest.approx([0.8, 0.5, 0.2])
    assert falling_shares([10], 5, 0.3) == pytest.approx([0.5])
    for lengths, budget in (([7, 1, 30, 2], 11), ([5, 5], 9), ([3, 4], 7)):
        shares = falling_shares(lengths, budget, 0.3)
        assert shares == sorted(shares, reverse=True) and all(0 <= share <= 1 for share in shares)
        assert sum(share * length for share, length in zip(shares, lengths)) == pytest.approx(budget)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_segments_together_keep_the_total_rounded_once(size):
    texts = [(list(range(20)), 0.43), (list(range(20, 31)), 1.0), (list(range(31, 38)), 0.0)]
    pieces = share_budget(texts, size)
    assert [column for columns, _ in pieces for column in columns] == list(range(38))
    assert sum(count for _, count in pieces) == round(20 * 0.43 + 11)
    assert all(0 <= count <= len(columns) <= size for columns, count in pieces)


def test_selective_context_keeps_the_most_surprising_units(monkeypatch, tokenizer):
    _, ids, mask = tokens(tokenizer, [" red green yellow black"])
    question = Question(ids[:, :0], mask[:, :0], None, None)
    candidates = Candidates(ids, mask, question, "words", 50, lambda: tokenizer)
    assert candidates.count == ids.shape[1] == 4
    relevance = SelfInformation()
    relevance.tokenizer = tokenizer
    monkeypatch.setattr(relevance, "nll_rows", lambda rows: [torch.tensor([0.0, 1, 3, 2, 0.5]) for _ in rows])
    places = relevance.select(candidates, torch.tensor([2]))
    assert places.tolist() == [[-1, 1, 2, -1]]


# ------------------------------------------------------------------ slow twins


def test_nats_of_rows_are_those_of_a_plain_pass(backbone, decoder, tokenizer):
    rows, _, _ = tokens(tokenizer, TEXTS)
    relevance, nll = prepared(SelfInformation(), backbone, decoder), model(decoder)
    for row, ours in zip(rows, relevance.nll_rows(rows)):
        assert ours.tolist() == pytest.approx([0.0, *nll(row[:1], row[1:])] if row else [], rel=1e-4)
    for whole, end in zip(relevance.nll_rows(rows), relevance.nll_rows(rows, [3] * len(rows))):
        torch.testing.assert_close(end[-3:], whole[-3:])
        assert not end[:-3].any()


def test_document_scores_are_perplexities(backbone, decoder, found):
    nll, candidates = model(decoder), found()
    plain = prepared(LLMLingua(), backbone, decoder).scores(candidates)
    asked = prepared(LongLLMLingua(statement=" We can"), backbone, decoder).scores(candidates)
    statement = backbone.tokenizer()(" We can", add_special_tokens=False)["input_ids"]
    rows = zip(candidates.rows(), candidates.columns(), candidates.question_rows())
    for b, (ids, units, question) in enumerate(rows):
        tail = [*question, *statement]
        for u, unit in enumerate(units):
            text = [ids[column] for column in unit]
            own, behind = nll(text[:1], text[1:]), nll(text, tail)
            assert float(plain[b, u]) == pytest.approx(sum(own) / len(own), rel=1e-4)
            assert float(asked[b, u]) == pytest.approx(-sum(behind) / len(behind), rel=1e-4)


@pytest.mark.parametrize("method", [LLMLingua, LongLLMLingua])
def test_tokens_are_those_of_the_slow_twin(method, backbone, decoder, found):
    """Segments of 5 tokens; a batch of ragged contexts against one context at a time without a cache."""
    relevance = prepared(method(segment_size=5), backbone, decoder)
    candidates, nll = found(), model(decoder)
    slots = (candidates.mask.sum(1) + 2) // 3
    places = relevance.select(candidates, slots)
    documents = relevance._documents(candidates, slots)
    for b, ids in enumerate(candidates.rows()):
        question = candidates.question_rows()[b] if method is LongLLMLingua else None
        pieces = relevance.pieces(documents[b], int(slots[b]))
        expected = reference.keep_tokens(ids, pieces, nll, question)
        kept = sorted((place, column) for column, place in enumerate(places[b].tolist()) if place >= 0)
        assert [column for _, column in kept] == expected and len(kept) == int(slots[b])
    if method is LLMLingua:
        assert len(documents[0]) == 3 and len(pieces) > 2


def test_documents_of_longllmlingua_are_the_best_first(backbone, decoder, found):
    candidates = found()
    relevance = prepared(LongLLMLingua(document_budget=1.5), backbone, decoder)
    slots = (candidates.mask.sum(1) + 1) // 2
    scores = relevance.scores(candidates)[0].tolist()
    documents = relevance._documents(candidates, slots)[0]
    units = candidates.columns()[0]
    order = sorted(range(len(units)), key=lambda unit: -scores[unit])
    assert [document[0] for document in documents] == [units[unit][0] for unit in order][: len(documents)]
    assert sum(map(len, documents)) == int(slots[0] * 1.5)


@pytest.mark.parametrize("method", [LLMLingua, LongLLMLingua, SelfInformation])
def test_a_row_alone_keeps_what_it_keeps_in_a_batch(method, backbone, decoder, found):
    relevance = prepared(method(), backbone, decoder)
    units = "words" if method is SelfInformation else "passages"
    together = found(units=units)
    slots = (together.mask.sum(1) + 2) // 3
    places = relevance.select(together, slots)
    for b in (0, 1, 3):
        alone = found(slice(b, b + 1), units)
        assert relevance.select(alone, slots[b : b + 1])[0].tolist() == places[b, : alone.ids.shape[1]].tolist()


def test_the_model_reads_without_dropout_and_keeps_its_mode(backbone, decoder):
    relevance = prepared(LLMLingua(), backbone, decoder)
    decoder.train()
    with relevance.reading() as stack:
        assert stack is decoder and not decoder.training and not torch.is_grad_enabled()
    assert decoder.training
    decoder.eval()
