"""Text selection: which text remains and where, external contexts, and messages about missing fields."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import ReaderSpec
from breviary.config.checks import check_equal_calls
from breviary.contract import Context, Document, Example, Question
from breviary.readers.external import External
from breviary.readers.text_selection import TextSelection
from tests.tiny import compose_tiny, row_ids, tiny_reader

FROZEN = "decoder.train=frozen"


def reader_of(*words):
    return tiny_reader(compose_tiny([*words, FROZEN])).eval()


def memory_and_ids(reader, batch):
    """The memory, and the ids of each row's slots."""
    memory = reader.memory(batch)
    table = reader.decoder.embed_tokens.weight
    found = [
        (row[valid][:, None] - table).abs().sum(-1).argmin(-1).tolist()
        for row, valid in zip(memory.embeds, memory.mask)
    ]
    return memory, found


def test_the_gold_passage_fills_the_budget_first(ragged_examples, collate):
    batch = collate([ragged_examples[0], ragged_examples[4]])
    reader = reader_of("compressor=gold", "compressor.units=sentences", "compressor.ratio=2")
    memory, found = memory_and_ids(reader, batch)
    for b in range(2):
        ids, gold = row_ids(batch, b, "context").tolist(), batch.evidence[b][batch.context.mask[b]].tolist()
        kept = memory.trace["kept"][b].nonzero()[:, 0].tolist()
        assert found[b] == [ids[column] for column in kept] and len(kept) == -(-len(ids) // 2)
        wanted = [column for column, is_gold in enumerate(gold) if is_gold]
        assert set(wanted) <= set(kept) or set(kept) <= set(wanted)


def test_within_the_budget_the_context_is_whole_and_in_order(ragged, build):
    full = build(["compressor=full_context", FROZEN]).eval()
    for name in ("bm25", "longllmlingua"):
        reader = reader_of(f"compressor={name}", "compressor.ratio=1")
        with torch.no_grad():
            assert torch.equal(reader.loss(ragged).nll, full.loss(ragged).nll)


def test_a_budget_in_slots_is_filled(ragged):
    reader = reader_of("compressor=random_text", "compressor.ratio=null", "compressor.slots=7")
    lengths = ragged.context.lengths
    assert reader.footprint(ragged).memory_slots.tolist() == lengths.clamp(max=7).tolist()


def test_a_language_model_of_its_own_ranks(ragged, monkeypatch):
    """A model in place of the decoder is frozen, belongs to no checkpoint, and decides what remains."""
    monkeypatch.setattr("breviary.selection.likelihood.Backbone", lambda *settings: TinyBackbone(layers=2, seed=5))
    name = ["compressor=llmlingua", "compressor.units=sentences", "compressor.ratio=2"]
    own, decoder = reader_of(*name, "compressor.relevance.model=other"), reader_of(*name)
    frozen = [weight for weight in own.compressor.parameters()]
    assert frozen and not any(weight.requires_grad for weight in frozen)
    kept = [one.memory(ragged).trace["kept"] for one in (own, decoder)]
    assert not torch.equal(*kept) and torch.equal(kept[0].sum(1), kept[1].sum(1))


# ------------------------------------------------------------------ external


def test_an_external_context_is_its_tokens(collate, ragged_examples):
    examples = [
        replace(ragged_examples[0], compressed_context="red fox"),
        replace(ragged_examples[3], compressed_context=""),
    ]
    batch, reader = collate(examples), reader_of("compressor=external")
    memory, found = memory_and_ids(reader, batch)
    assert found == [batch.compressed.ids[0][batch.compressed.mask[0]].tolist(), []]
    assert reader.requested_ratio is None and reader.footprint(batch).memory_slots.tolist() == [len(found[0]), 0]


def test_contexts_without_what_is_read_are_refused(ragged_examples, collate):
    batch = collate([ragged_examples[3]])
    for name, match in (("gold", "no marked gold passages"), ("external", "compressed_context")):
        with pytest.raises(ValueError, match=match):
            reader_of(f"compressor={name}").memory(batch)


# ------------------------------------------------------------------ problems


def items(*examples, compressed=()):
    return SimpleNamespace(examples=examples, compressed_lengths=list(compressed), other_lengths=[10] * len(examples))


GOLD = Example("a", "text", "Q?", ("x",), (Document("", 0, 4, True),), "te")
PLAIN = Example("b", "text", "Q?", ("x",))


def test_examples_without_marks_are_refused_before_weights_are_loaded():
    for value in ("gold", {"_target_": "breviary.selection.gold.Gold"}):
        [problem] = TextSelection.data_problems({"relevance": value}, "test", items(GOLD, PLAIN), 100)
        assert problem.startswith("dataset test: 1 of 2 examples mark no gold passage (first id: 'b')")
    assert TextSelection.data_problems({"relevance": "gold"}, "test", items(GOLD), 100) == []
    assert TextSelection.data_problems({"relevance": "bm25"}, "test", items(PLAIN), 100) == []


def test_examples_without_a_compressed_context_are_refused_before_weights_are_loaded():
    [problem] = External.data_problems({}, "train", items(GOLD, PLAIN, compressed=[1, 0]), 100)
    assert problem.startswith("dataset train: 1 of 2 examples have no compressed_context (first id: 'b')")
    [problem] = External.data_problems({}, "train", items(GOLD, compressed=[95]), 100)
    assert "take up to 105 tokens" in problem
    assert External.data_problems({}, "train", items(GOLD, compressed=[90]), 100) == []


SETTINGS = {"ratio": 4, "slots": None, "ratio_choices": None, "units": "segments", "segment_size": 50}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": "lines"}, "compressor.units=lines: allowed are segments, sentences, passages, words"),
        ({"segment_size": 0}, "compressor.segment_size=0: must be at least 1 token, e.g. 50"),
        ({"relevance": "cosine"}, "compressor.relevance=cosine: compares states of a compressor's own encoder"),
        (
            {
                "relevance": {
                    "_target_": "breviary.selection.embedding.Embedding",
                    "model": None,
                    "layers": 9,
                    "pooling": "x",
                }
            },
            "compressor.relevance.pooling=x: allowed are mean, first, last",
        ),
        (
            {"relevance": {"_target_": "breviary.selection.perplexity.LLMLingua", "model": "/no/such/folder"}},
            "compressor.relevance.model=/no/such/folder: no such folder",
        ),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    relevance = changes.get("relevance", "bm25")
    if isinstance(relevance, dict):
        relevance = {"document_budget": 2.0, "segment_size": 100, **relevance}
    problems = TextSelection.problems({**SETTINGS, **changes, "relevance": relevance}, TinyBackbone(layers=4))
    assert problems and any(problem.startswith(message) for problem in problems), problems


@pytest.mark.parametrize("name, count", [("llmlingua", 1), ("selective_context", 1), ("bm25", 0), ("comi", 0)])
def test_zero3_is_refused_where_the_number_of_passes_depends_on_the_data(name, count):
    cfg = compose_tiny([f"compressor={name}", "engine=zero3"])
    problems = check_equal_calls(cfg.engine, ReaderSpec.of(cfg), TinyBackbone())
    assert len(problems) == count and all("use engine=zero2" in problem for problem in problems)


def test_an_embedding_model_in_a_folder_ranks(tmp_path, tokenizer, ragged):
    """Any AutoModel: here BERT's class with random weights and our tokenizer."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = ["compressor=dense", "compressor.units=sentences", "compressor.ratio=2"]
    kept = []
    for pooling in ("mean", "first", "last"):
        reader = reader_of(*words, f"compressor.relevance.model={tmp_path}", f"compressor.relevance.pooling={pooling}")
        assert not any(weight.requires_grad for weight in reader.compressor.parameters())
        kept.append(reader.memory(ragged).trace["kept"])
        alone = [reader.memory(ragged.rows([b])).trace["kept"][0] for b in range(len(ragged))]
        assert all(torch.equal(one[one.nonzero()], row[row.nonzero()]) for one, row in zip(alone, kept[-1]))
    assert (kept[0].sum(1) == -(-ragged.context.lengths // 2)).all()


def test_context_states_of_the_dense_ranker_do_not_depend_on_the_question(ragged, collate, ragged_examples):
    reader = reader_of("compressor=dense", "compressor.relevance.layers=2")
    encoded = reader.compressor.encode(Context(ragged.context.ids, ragged.context.mask, ragged.prefix))
    assert encoded.states.shape[:3] == encoded.mask.shape and not encoded.states[~encoded.mask].any()
    question = Question(ragged.query.ids, ragged.query.mask, None, None)
    memory = reader.compressor.compress(encoded, question)
    assert torch.equal(memory.mask.sum(1), -(-ragged.context.lengths // 4))
