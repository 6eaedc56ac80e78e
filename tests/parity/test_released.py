"""Released checkpoints, imported with --quirks, against the reference computations of tests/released_forms.py.

One unpadded example, fp32: states, memory, logits and losses agree within 2e-5. Only the order of sums differs (cached
keys and values, batched cosines, memory as keys and values alone).
"""

import pytest
import torch
from released_forms import PublishedCoMeT, PublishedCOMI, PublishedRAM, plain_model, save_backbone, state_of
from safetensors.torch import save_file

from breviary.backbones.pretrained import Backbone
from breviary.contract import Context, Example
from breviary.evaluation.session import EvaluationSession
from breviary.runs.checkpoints import best_checkpoint
from breviary.runs.folders import load_config
from breviary.runs.importing import import_checkpoint
from comet.layout import TEXT as TEXT_PART
from comet.memory import MemoryState
from data.collate import Collator
from data.invented_facts import InventedFacts
from data.prompts import Prompt
from data.text_pipeline import TEXT
from scripts.import_checkpoint import FORMATS
from tests.tiny import row_ids

PARTS = ("context", "query", "prompt", "answer")


@pytest.fixture(scope="module")
def example():
    fact = InventedFacts(facts=4).examples("train")[0]
    return Example(fact.id, fact.context, fact.question, fact.answers)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def load_imported(folder, **settings):
    """The reader of an imported run as eval.py loads it, in evaluation mode; `settings` replace the compressor's."""
    cfg = load_config(folder)
    for key, value in settings.items():
        cfg.compressor[key] = value
    return EvaluationSession(TEXT).load_reader(cfg, best_checkpoint(folder)).eval()


def batch_of(folder, example):
    """The example with the run's prompt."""
    prompt = Prompt(**load_config(folder).prompt)
    tokenizer = Backbone(load_config(folder).backbone.path).tokenizer()
    return Collator(0)([{**prompt.tokenise(example, tokenizer), "example": example}])


def logits_of(reader, batch, *heads):
    """Logits of the supervised positions (A, V), as computed for the loss, and the loss output."""
    outputs = []
    keep = lambda module, rows: outputs.append(rows[0] @ module.weight.T)  # (A, V): the loss has no logits as a result
    hooks = [head.register_forward_pre_hook(keep) for head in heads]
    with torch.no_grad():
        output = reader.loss(batch)
    for hook in hooks:
        hook.remove()
    return torch.cat(outputs, -1), output


def compare(reader, batch, published):
    """Compares states, memory, logits and loss of a compressor."""
    with torch.no_grad():
        encoded = reader.compressor.encode(Context(batch.context.ids, batch.context.mask, batch.prefix))
        memory = reader.memory(batch)
    assert_close(encoded.states[encoded.mask], published.states)
    assert_close(memory.embeds[memory.mask], published.memory)
    logits, output = logits_of(reader, batch, reader.decoder.lm_head)
    assert_close(logits, published.logits)
    assert_close(output.nll.sum() / output.tokens.sum(), published.losses["answer"])


# ------------------------------------------------------------------ COMI

FORMS = {  # arguments of PublishedCOMI, segment size
    "lora": (dict(lora=True), 10_000),
    "lora-learned-segments": (dict(lora=True, scalars=(0.8, 1.3, 2.1, -0.4)), 24),
    "whole-segments": (dict(lora=False), 24),
    "whole-older-learned": (dict(lora=False, encoder="icae", scalars=(1.0, 0.5, 1.5, 0.7)), 10_000),
}


@pytest.mark.parametrize("form, segment_size", FORMS.values(), ids=FORMS)
def test_comi(tmp_path, example, form, segment_size):
    model = plain_model("qwen2", tied=form["lora"])
    published = PublishedCOMI(model, **form)
    save_file(state_of(published), tmp_path / "comi.safetensors")
    folder, _ = import_checkpoint(
        FORMATS,
        "comi",
        tmp_path / "comi.safetensors",
        save_backbone(model, tmp_path / "backbone"),
        tmp_path / "run",
        quirks=True,
        ratio=4,
        segment_size=segment_size,
        lora_alpha=8 if form["lora"] else None,
    )
    batch, reader = batch_of(folder, example), load_imported(folder)
    assert batch.prefix.mask.sum() == 0 and len(row_ids(batch, 0, "context")) > 40
    expected = published.compute(*(row_ids(batch, 0, part) for part in PARTS), 4, segment_size)
    compare(reader, batch, expected)
    reader.compressor.gain.quirks = False  # the example has padded groups, so that E2 matters
    own = reader.memory(batch)
    assert (own.embeds[own.mask] - expected.memory).abs().max() > 1e-2


# ------------------------------------------------------------------ RAM


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_ram(tmp_path, example, tied):
    model = plain_model("qwen3", tied)
    published = PublishedRAM(model)
    torch.save(state_of(published), tmp_path / "pytorch_model.bin")
    folder, _ = import_checkpoint(
        FORMATS,
        "ram",
        tmp_path / "pytorch_model.bin",
        save_backbone(model, tmp_path / "backbone"),
        tmp_path / "run",
        quirks=True,
        segment_size=6,
    )
    batch = batch_of(folder, example)
    positives = [1, 4]
    expected = published.compute(*(row_ids(batch, 0, part) for part in PARTS), 4, 6, positives)
    reader = load_imported(folder)
    compare(reader, batch, expected)
    reader.train()
    evidence = torch.zeros_like(batch.context.mask)
    for segment in positives:
        evidence[0, 6 * segment + 2] = True
    batch.evidence = evidence
    with torch.no_grad():
        loss, count = reader.loss(batch).parts["contrastive"]
    assert count == 1
    assert_close(loss, expected.losses["contrastive"])
    own = load_imported(folder, quirks=False).memory(batch)
    assert (own.embeds[own.mask] - expected.memory).abs().max() > 1e-2


def test_ram_rounds_rotary_frequencies_with_quirks_only(tmp_path, example):
    """The released inference casts the whole model to bfloat16. Kept tokens apart, this is the only difference."""
    model = plain_model("qwen3")
    torch.save(state_of(PublishedRAM(model)), tmp_path / "pytorch_model.bin")
    backbone = save_backbone(model, tmp_path / "backbone")
    folder, _ = import_checkpoint(
        FORMATS, "ram", tmp_path / "pytorch_model.bin", backbone, tmp_path / "run", quirks=True, segment_size=6
    )
    batch, exact = batch_of(folder, example), model.model.rotary_emb.inv_freq
    losses = {}
    for quirks in (True, False):
        reader = load_imported(folder, quirks=quirks)
        expected = exact.bfloat16().float() if quirks else exact
        for stack in (reader.decoder, reader.compressor.context_encoder.encoder):
            assert torch.equal(stack.rotary.inv_freq, expected)
            assert torch.equal(stack.to(torch.bfloat16).float().rotary.inv_freq, expected)
        reader = load_imported(folder, quirks=quirks, keep="none")
        with torch.no_grad():
            losses[quirks] = float(reader.loss(batch).nll.sum() / reader.loss(batch).tokens.sum())
    assert abs(losses[True] - losses[False]) > 1e-4


# ------------------------------------------------------------------ CoMeT


@pytest.mark.parametrize(
    "tied, once", [(True, True), (True, False), (False, False)], ids=["tied", "tied-twice", "untied"]
)
def test_comet(tmp_path, example, tied, once):
    model = plain_model("qwen3", tied)
    published = PublishedCoMeT(model)
    source = published.save(tmp_path / "released", once)
    folder, _ = import_checkpoint(
        FORMATS, "comet", source, save_backbone(model, tmp_path / "backbone"), tmp_path / "run", quirks=True
    )
    batch, reader = batch_of(folder, example), load_imported(folder)
    ids = row_ids(batch, 0, "prefix", "context", "prompt", "answer")
    assert len(ids) > 4 * published.SIZES["chunk_size"]  # the queue is full, the gate was applied more than once
    expected = published.compute(ids, len(row_ids(batch, 0, "answer")))
    text = reader.chunk_batch(batch).text
    with torch.no_grad():
        states, memory = encode(reader, text)
    assert_close(states, expected.states)
    assert_close(memory, expected.memory)
    logits, output = logits_of(reader, batch, reader.decoder.lm_head, reader.memory.new_token_head)
    assert_close(logits, expected.logits)
    assert_close(output.nll.sum() / output.tokens.sum(), expected.losses["answer"])
    logits = expected.logits[:, : model.config.vocab_size]  # the default: an answer has no new tokens
    nll = torch.nn.functional.cross_entropy(logits, row_ids(batch, 0, "answer"))
    own = load_imported(folder, quirks=False).loss(batch)
    assert abs(expected.losses["answer"] - nll) > 1e-3
    torch.testing.assert_close(own.nll.sum() / own.tokens.sum(), nll, rtol=0, atol=1e-3)  # the norms have another eps


def encode(reader, text):
    """Final states of every text token of one row (N, D), and [S ; Q] of every layer after the last complete chunk."""
    memory, rows = MemoryState.empty(1, text.ids.device), []
    for chunk in reader.prepare_chunks(text):
        states, memory, _ = reader.memory.run(
            reader.decoder, reader.embed_chunk(text, chunk), chunk.layout, chunk.initial_memory(memory), chunk.updates
        )
        rows.append(states[0, chunk.layout.columns_of(TEXT_PART)[0, : chunk.step.sizes[0]]])
    slots = [torch.cat([layer.global_state[0], layer.queue[0, memory.queue_mask[0]]]) for layer in memory.layers]
    return reader.decoder.norm(torch.cat(rows)), torch.cat(slots)
