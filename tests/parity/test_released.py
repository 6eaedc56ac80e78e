"""Released checkpoints, imported with --quirks, against the published forms computed by hand (tests/released_forms.py).

One unpadded example, fp32: states, memory, logits and losses within 2e-5. Ours reads the same numbers in another order
of sums (kept keys and values, batched cosines, memory as keys and values alone), nothing else.
"""

import pytest
import torch
from released_forms import PublishedCoMeT, PublishedCOMI, PublishedRAM, plain_model, save_backbone, state_of
from safetensors.torch import save_file

from breviary.backbones.pretrained import Backbone
from breviary.contract import Context, Example
from breviary.runs.checkpoints import best_checkpoint
from breviary.runs.folders import load_config
from comet.layout import TEXT
from comet.memory import MemoryState
from data.collate import Collator
from data.invented_facts import InventedFacts
from data.prompts import Prompt
from eval import loaded
from scripts.import_checkpoint import import_checkpoint
from tests.tiny import row_ids

PARTS = ("context", "query", "prompt", "answer")


@pytest.fixture(scope="module")
def example():
    fact = InventedFacts(facts=4).examples("train")[0]
    return Example(fact.id, fact.context, fact.question, fact.answers)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


def imported(folder, **changed):
    """The reader of an imported run as eval.py opens it, in evaluation mode; keys of the compressor changed."""
    cfg = load_config(folder)
    for key, value in changed.items():
        cfg.compressor[key] = value
    return loaded(cfg, Backbone(cfg.backbone.path, cfg.backbone.dtype), best_checkpoint(folder)).eval()


def batch_of(folder, example):
    """The example under the run's own prompt."""
    shown = Prompt(**load_config(folder).prompt)
    tokenizer = Backbone(load_config(folder).backbone.path).tokenizer()
    return Collator(0)([{**shown.tokenise(example, tokenizer), "example": example}])


def logits_of(reader, batch, *heads):
    """Logits of the supervised rows (A, V) that the loss was computed from, and the loss output."""
    seen = []
    hooks = [head.register_forward_hook(lambda module, rows, out: seen.append(out)) for head in heads]
    with torch.no_grad():
        output = reader.loss(batch)
    for hook in hooks:
        hook.remove()
    return torch.cat(seen, -1)[0], output


def compare(reader, batch, published):
    """Of a compressor: states, memory, logits, loss."""
    with torch.no_grad():
        encoded = reader.compressor.encode(Context(batch.context.ids, batch.context.mask, batch.prefix))
        memory = reader.memory(batch)
    close(encoded.states[encoded.mask], published.states)
    close(memory.embeds[memory.mask], published.memory)
    logits, output = logits_of(reader, batch, reader.decoder.lm_head)
    close(logits, published.logits)
    close(output.nll.sum() / output.tokens.sum(), published.losses["answer"])


# ------------------------------------------------------------------ COMI

FORMS = {  # the published modules, tokens read at once
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
        "comi",
        tmp_path / "comi.safetensors",
        save_backbone(model, tmp_path / "backbone"),
        tmp_path / "run",
        quirks=True,
        ratio=4,
        segment_size=segment_size,
        lora_alpha=8 if form["lora"] else None,
    )
    batch, reader = batch_of(folder, example), imported(folder)
    assert batch.prefix.mask.sum() == 0 and len(row_ids(batch, 0, "context")) > 40
    wanted = published.compute(*(row_ids(batch, 0, part) for part in PARTS), 4, segment_size)
    compare(reader, batch, wanted)
    reader.compressor.gain.quirks = False  # the example has what E2 is about
    ours = reader.memory(batch)
    assert (ours.embeds[ours.mask] - wanted.memory).abs().max() > 1e-2


# ------------------------------------------------------------------ RAM


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_ram(tmp_path, example, tied):
    model = plain_model("qwen3", tied)
    published = PublishedRAM(model)
    torch.save(state_of(published), tmp_path / "pytorch_model.bin")
    folder, _ = import_checkpoint(
        "ram",
        tmp_path / "pytorch_model.bin",
        save_backbone(model, tmp_path / "backbone"),
        tmp_path / "run",
        quirks=True,
        segment_size=6,
    )
    batch = batch_of(folder, example)
    positives = [1, 4]
    wanted = published.compute(*(row_ids(batch, 0, part) for part in PARTS), 4, 6, positives)
    reader = imported(folder)
    compare(reader, batch, wanted)
    reader.train()
    marks = torch.zeros_like(batch.context.mask)
    for number in positives:
        marks[0, 6 * number + 2] = True
    batch.evidence = marks
    with torch.no_grad():
        loss, count = reader.loss(batch).parts["contrastive"]
    assert count == 1
    close(loss, wanted.losses["contrastive"])
    ours = imported(folder, quirks=False).memory(batch)
    assert (ours.embeds[ours.mask] - wanted.memory).abs().max() > 1e-2


# ------------------------------------------------------------------ CoMeT


@pytest.mark.parametrize(
    "tied, once", [(True, True), (True, False), (False, False)], ids=["tied", "tied-twice", "untied"]
)
def test_comet(tmp_path, example, tied, once):
    model = plain_model("qwen3", tied)
    published = PublishedCoMeT(model)
    source = published.save(tmp_path / "released", once)
    folder, _ = import_checkpoint(
        "comet", source, save_backbone(model, tmp_path / "backbone"), tmp_path / "run", quirks=True
    )
    batch, reader = batch_of(folder, example), imported(folder)
    ids = row_ids(batch, 0, "prefix", "context", "prompt", "answer")
    assert len(ids) > 4 * published.SIZES["chunk_size"]  # the queue is full, the gate has mixed more than once
    wanted = published.compute(ids, len(row_ids(batch, 0, "answer")))
    text, _, _ = reader._text(batch)
    with torch.no_grad():
        states, memory = read(reader, text)
    close(states, wanted.states)
    close(memory, wanted.memory)
    logits, output = logits_of(reader, batch, reader.decoder.lm_head, reader.memory.new_token_head)
    close(logits, wanted.logits)
    close(output.nll.sum() / output.tokens.sum(), wanted.losses["answer"])
    old = wanted.logits[:, : model.config.vocab_size]  # ours by default: no answer is a new token
    nll = torch.nn.functional.cross_entropy(old, row_ids(batch, 0, "answer"))
    ours = imported(folder, quirks=False).loss(batch)
    assert abs(wanted.losses["answer"] - nll) > 1e-3
    torch.testing.assert_close(ours.nll.sum() / ours.tokens.sum(), nll, rtol=0, atol=1e-3)  # another eps in the norms


def read(reader, text):
    """Normed states at every text token of one row (N, D), and [S ; Q] of every layer after the last closed chunk."""
    memory, rows = MemoryState.fresh(1, text.ids.device), []
    for chunk in reader.laid_out(text):
        states, memory, _ = reader.memory.run(
            reader.decoder, reader.embeds(text, chunk), chunk.layout, chunk.entered(memory), chunk.closes
        )
        rows.append(states[0, chunk.layout.columns_of(TEXT)[0, : chunk.step.sizes[0]]])
    kept = [torch.cat([layer.carried[0], layer.queue[0, memory.queue_mask[0]]]) for layer in memory.layers]
    return reader.decoder.norm(torch.cat(rows)), torch.cat(kept)
