"""Key/value eviction: which entries remain, their order, and that keeping everything changes nothing."""

from dataclasses import replace

import pytest
import torch

from breviary.backbones.fetching import get_backbone
from breviary.backbones.stack import ReadOnlyCache
from breviary.contract import Batch, Context, Example, Generation, Tokens
from breviary.memory.assembly import Layout
from breviary.memory.columns import Columns
from breviary.memory.kept_keys import KeptKeys
from breviary.readers.cache import ContextCache
from breviary.readers.cache_selection import CacheSelection
from tests.tiny import disturb, greedy_ids, plain_nll, row_ids

SCORERS = (
    "adakv",
    "attention_matching",
    "expected_attention",
    "h2o",
    "keydiff",
    "knorm",
    "kvzip",
    "pyramidkv",
    "random_cache",
    "snapkv",
    "streaming_llm",
    "tova",
)
AWARE = ("adakv", "pyramidkv", "snapkv", "tova")
MODES = [(name, "unknown") for name in SCORERS] + [(name, "known") for name in AWARE]
FROZEN = "decoder.train=frozen"


def reader_of(build, name, question="unknown", *overrides):
    reader = build([f"compressor={name}", f"compressor.question={question}", FROZEN, *overrides]).eval()
    disturb(reader)
    return reader


def memory_of(reader, batch):
    with torch.no_grad():
        return reader.memory(batch)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_entry_kept_is_the_plain_model(build, family, attention, ragged):
    for name, question in (("snapkv", "known"), ("kvzip", "unknown"), ("adakv", "unknown")):
        settings = [f"backbone.family={family}", f"backbone.attn_implementation={attention}", "compressor.ratio=1"]
        reader = build([f"compressor={name}", f"compressor.question={question}", FROZEN, *settings]).eval()
        model = reader.compressor._backbone.load().eval()
        with torch.no_grad():
            nll = reader.loss(ragged).nll
            for b in range(len(ragged)):
                plain = plain_nll(
                    model, row_ids(ragged, b, "prefix", "context", "prompt"), row_ids(ragged, b, "answer")
                )
                torch.testing.assert_close(nll[b], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "question"), MODES)
def test_the_budget_is_filled_exactly(build, name, question, ragged):
    reader = reader_of(build, name, question)
    memory, lengths = memory_of(reader, ragged), ragged.context.lengths
    expected = -(-lengths // 4)
    assert memory.slots.tolist() == expected.tolist()
    heads = len(memory.layers[0].counts[0])
    prefix = ragged.prefix.lengths
    for b in range(len(ragged)):
        entries = sum(sum(layer.counts[b]) for layer in memory.layers)
        assert entries == len(memory.layers) * heads * int(expected[b] + prefix[b])
    assert (
        reader.footprint(ragged).memory_bytes.tolist()
        == (expected * reader.compressor.slot_bytes(reader.decoder)).tolist()
    )


@pytest.mark.parametrize(("name", "question"), MODES)
def test_batches_padding_and_caches_change_nothing(build, name, question, ragged_examples, collate):
    reader = reader_of(build, name, question)
    alone = [collate([example]) for example in ragged_examples]
    with torch.no_grad():
        single = torch.cat([reader.loss(batch).nll for batch in alone])
        ids = [greedy_ids(reader, batch)[0] for batch in alone]
        for batch in (collate(ragged_examples), collate(ragged_examples, side="left")):
            for cache in (None, ContextCache(8)):
                reader.context_cache = cache
                torch.testing.assert_close(reader.loss(batch).nll, single, rtol=1e-5, atol=1e-5)
                assert greedy_ids(reader, batch) == ids
            reader.context_cache = None


def test_the_evicted_cache_equals_a_masked_full_one(build, ragged):
    """Slow twin: the full cache with a mask of the kept entries for each layer and head."""
    for name, question in (("snapkv", "known"), ("adakv", "unknown"), ("pyramidkv", "unknown")):
        reader = reader_of(build, name, question)
        decoder, compressor = reader.decoder, reader.compressor
        with torch.no_grad():
            nll = reader.loss(ragged).nll
            encoded = compressor.encode(Context(ragged.context.ids, ragged.context.mask, ragged.prefix))
            memory = memory_of(reader, ragged)
            masks = {layer: _kept_mask(encoded, layer, kept) for layer, kept in enumerate(memory.layers)}
            layout = Layout.of([ragged.prompt.mask, ragged.answer.mask])
            start = ragged.prefix.lengths + ragged.context.lengths
            positions = (layout.positions() + start[:, None]).masked_fill(~layout.mask, 0)
            own = layout.mask[:, None]
            key_mask = {i: torch.cat([m, own.expand(-1, m.shape[1], -1)], 2) for i, m in masks.items()}
            full = ReadOnlyCache([(k[:, 0], v[:, 0]) for k, v in encoded.keys_values])
            embeds = decoder.embed(layout.pack([ragged.prompt.ids, ragged.answer.ids]))
            states = decoder.run(embeds, range(len(decoder)), positions, key_mask, full)
            logits = decoder.head(reader._predicting(states, layout.columns_of(1)))
            expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ragged.answer.ids, reduction="none")
            torch.testing.assert_close(nll, (expected * ragged.answer.mask).sum(1), rtol=1e-5, atol=1e-5)


def _kept_mask(encoded, layer, kept):
    """Which columns of the full cache `kept` holds, found by comparing keys: (B, J, S)."""
    keys = encoded.keys_values[layer][0][:, 0]
    mask = torch.zeros(keys.shape[:3], dtype=torch.bool)
    padded = kept.padded()[0]
    for b, counts in enumerate(kept.counts):
        for j, count in enumerate(counts):
            same = (keys[b, j][:, None] == padded[b, j, :count][None]).all(-1)
            mask[b, j] = same.any(1) & encoded.mask[b, 0]
            assert int(mask[b, j].sum()) == count
    return mask


def test_a_known_question_chooses_its_own_entries(build, ragged):
    reader, other = reader_of(build, "snapkv", "known"), ragged.prompt.ids.flip(1)
    changed = replace(ragged, prompt=replace(ragged.prompt, ids=other.masked_fill(~ragged.prompt.mask, 0)))
    first, second = (memory_of(reader, batch).layers[-1].keys for batch in (ragged, changed))
    assert not torch.equal(first, second)
    agnostic = reader_of(build, "snapkv", "unknown")
    first, second = (memory_of(agnostic, batch).layers[-1].keys for batch in (ragged, changed))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "question"), [("snapkv", "known"), ("kvzip", "unknown"), ("attention_matching", "unknown")]
)
def test_saved_memories_answer_as_before(build, name, question, ragged_examples, collate, tmp_path):
    reader = reader_of(build, name, question)
    reader.identity = {"method": name}
    batch, generation = collate(ragged_examples[:1]), Generation(max_new_tokens=4)
    answer = reader.answer(batch, generation)
    [document] = reader.encode_contexts(batch)
    assert document.answer(batch, generation) == answer
    assert "".join(document.stream(batch, generation)) == answer[0]
    document.save(tmp_path / "document")
    assert reader.load_saved(tmp_path / "document").answer(batch, generation) == answer
    memory = document.memory(batch) if question == "known" else document
    memory.save(tmp_path / "memory")
    again = reader.load_saved(tmp_path / "memory")
    assert again.answer(batch, generation) == answer and again.bytes == memory.bytes
    assert again.bytes < memory.cache_bytes
    with pytest.raises(ValueError, match="already the memory|another one needs the document"):
        again.memory(batch)


def test_the_answers_loss_reaches_kept_keys(build, ragged):
    for name, question in (("snapkv", "known"), ("kvzip", "unknown")):
        reader = build([f"compressor={name}", f"compressor.question={question}", "decoder.train=lora"]).train()
        disturb(reader)
        reader.loss(ragged).nll.sum().backward()
        trained = [(n, p) for n, p in reader.named_parameters() if p.requires_grad]
        assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in trained)
        context_only = [p for n, p in trained if "k_proj" in n or "v_proj" in n]
        assert context_only


def test_budgets_in_slots_and_bytes(build, ragged):
    reader = reader_of(build, "knorm", "unknown", "compressor.ratio=null", "compressor.slots=5")
    lengths = ragged.context.lengths
    assert memory_of(reader, ragged).slots.tolist() == lengths.clamp(max=5).tolist()
    per_slot = reader.compressor.slot_bytes(reader.decoder)
    reader = reader_of(build, "knorm", "unknown", "compressor.ratio=null", f"compressor.bytes={5 * per_slot + 1}")
    assert memory_of(reader, ragged).slots.tolist() == lengths.clamp(max=5).tolist()


def test_problems_name_the_key():
    settings = {"scorer": {"_target_": "breviary.scorers.knorm.Knorm"}, "question": "known", "ratio": 4, "slots": None}
    settings["ratio_choices"] = None
    [problem] = CacheSelection.problems(settings, None)
    assert "compressor.question=known: Knorm does not read the question" in problem
    [problem] = CacheSelection.problems({**settings, "question": "maybe"}, None)
    assert "compressor.question=maybe: allowed are known, unknown" in problem
    wrong = {"_target_": "breviary.scorers.snapkv.SnapKV", "window": 0}
    [problem] = CacheSelection.problems({**settings, "scorer": wrong}, None)
    assert problem.startswith("compressor.scorer.window=0")


def test_kvzip_needs_positions_for_what_it_repeats():
    settings = {"scorer": {"_target_": "breviary.scorers.kvzip.KVzip", "chunk_size": 100}}
    assert CacheSelection.longest_context(settings, 1000, 20) == 1000 - 164
    assert CacheSelection.longest_context({"scorer": {"_target_": "breviary.scorers.knorm.Knorm"}}, 1000, 20) == 980


# ------------------------------------------------------------------ parts


def test_columns_split_rows_of_different_prefixes():
    valid = torch.arange(6) < torch.tensor([[5], [4]])
    ids = torch.tensor([[-1, -1, 7, 8, 9, 0], [-1, 5, 6, 7, 0, 0]])
    columns = Columns.of(valid, ids)
    assert columns.start is None
    assert columns.context(ids).masked_fill(~columns.mask, 0).tolist() == [[7, 8, 9, 0, 0], [5, 6, 7, 0, 0]]
    kept = torch.tensor([[[True, False, True, False, False]], [[False, False, True, True, True]]])
    assert columns.with_prefix(kept).int().tolist() == [[[1, 1, 1, 0, 1, 0]], [[1, 0, 0, 1, 0, 0]]]
    values = columns.replace(torch.zeros(2, 1, 6), torch.arange(10.0).view(2, 1, 5))
    assert values.tolist() == [[[0, 0, 0, 1, 2, 0]], [[0, 5, 6, 7, 0, 0]]]


def test_kept_keys_hold_no_padding():
    keys = torch.arange(24.0).view(2, 2, 3, 2)
    kept = torch.tensor([[[True, False, True], [False, False, True]], [[True, True, True], [False, False, False]]])
    one = KeptKeys.select(keys, -keys, kept, keys[..., 0])
    assert one.counts == ((2, 1), (3, 0)) and one.bytes == 6 * (2 + 2 + 1) * 4
    padded = one.padded()[0]
    assert padded[0, 0].tolist() == [[0, 1], [4, 5], [0, 0]] and padded[1, 1].eq(0).all()
    assert one.key_mask()[0, 1].tolist() == [10.0, -torch.inf, -torch.inf]
    again = KeptKeys.join([one.rows([1]), one.rows([0])]).rows([1, 0])
    assert again.counts == one.counts and torch.equal(again.keys, one.keys) and torch.equal(again.bias, one.bias)
    uniform = KeptKeys.select(keys, keys, torch.ones(2, 2, 3, dtype=torch.bool))
    assert uniform.is_uniform and uniform.key_mask() is None and torch.equal(uniform.padded()[0], keys)
    assert uniform.padded()[0].data_ptr() == uniform.keys.data_ptr()


@pytest.mark.slow
def test_every_entry_kept_is_smollm2(build):
    """The real backbone in float32: keeping everything equals full context."""
    shared = ["backbone=smollm2_135m", f"backbone.path={get_backbone()}", "backbone.dtype=float32", FROZEN]
    full = build([*shared, "compressor=full_context"]).eval()
    kept = build([*shared, "compressor=snapkv", "compressor.ratio=1"]).eval()
    reading = build([*shared, "compressor=attention", "compressor.ratio=1"]).eval()
    texts = full.tokenizer(["The metal of Velkeld is tin. " * 20, "Where is it? In the mountains."])
    parts = [torch.tensor(ids)[None] for ids in texts.input_ids]
    tokens = [Tokens(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in parts]
    start = Tokens(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    answer = Tokens(tokens[1].ids[:, :3], tokens[1].mask[:, :3])
    example = Example("0", "", "", ("",))
    batch = Batch(start, tokens[0], tokens[1], tokens[1], answer, None, None, [example])
    with torch.no_grad():
        expected = full.loss(batch).nll
        for reader in (kept, reading):
            torch.testing.assert_close(reader.loss(batch).nll, expected, rtol=1e-5, atol=1e-4)
