"""An autoencoder trained on a few documents: reconstruction metrics, unconditional and shuffled-context losses."""

import random
from dataclasses import replace

import pytest
import torch

from breviary.config.build import build_backbone
from breviary.contract import Example, Generation
from breviary.evaluation.loop import evaluate, shuffled_context_nll, unconditional_nll
from breviary.evaluation.results import summarise
from data.collate import Collator
from data.metrics import scores
from data.prompts import Prompt
from data.tokenised import tokenise_split
from tests.tiny import compose_tiny, plain_nll, row_ids, tiny_reader

AUTOENCODER = ["objective=reconstruct", "compressor=mean_pool"]
TEXT = (
    "red blue green yellow black white brown pink purple orange grey gold copper iron silver tin zinc steel nickel "
    "lead bronze brass dog cat horse lion tiger bear wolf fox eagle snake rabbit mouse apple banana"
)
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def items(tokenizer):
    """Eight documents of 16 to 20 words."""
    rng = random.Random(0)
    texts = [" ".join(rng.sample(WORDS, 16 + i % 5)) for i in range(8)]
    examples = [Example(f"{i}", text, "Restate the text.", ("not used",)) for i, text in enumerate(texts)]
    return tokenise_split(
        examples, tokenizer, Prompt(template="\n{question}\n", answer_template="{answer}"), None, None
    )


def trained(items, tokenizer, *words, steps):
    """The reader after `steps` steps on all documents."""
    reader = tiny_reader(compose_tiny([*AUTOENCODER, *words]))
    batch = Collator(tokenizer.pad_token_id)([items[i] for i in range(len(items))])
    own = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        output = reader.loss(batch)
        (output.nll.sum() / output.tokens.sum()).backward()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
    return reader


@pytest.fixture(scope="module")
def unconditional(items, tokenizer):
    base = tiny_reader(compose_tiny(["objective=reconstruct", "compressor=no_context", "decoder.train=frozen"]))
    return unconditional_nll(base, items, Collator(tokenizer.pad_token_id), 4)


def evaluated(reader, items, tokenizer, unconditional):
    """The summary of eval.py, and one result row."""
    actual = evaluate(
        reader,
        items,
        Collator(tokenizer.pad_token_id),
        scores,
        Generation(max_new_tokens=64),
        4,
        unconditional=unconditional,
    )
    rows = [row for batch in actual for row in batch]
    return summarise(rows, None, resamples=20), rows[0]


def test_eight_documents_are_memorised_at_ratio_4(items, tokenizer, unconditional):
    reader = trained(items, tokenizer, "decoder.train=full", "compressor.ratio=4", steps=30)
    summary, row = evaluated(reader, items, tokenizer, unconditional)
    value = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert value["accuracy"] > 0.99 and value["normalised_gain"] > 0.95
    assert value["prefix_em"] == value["bleu"] == value["edit_similarity"] == value["end_rate"] == value["em"] == 1
    assert value["gain"] == pytest.approx(value["ce_unconditional"] - value["ce"])
    assert summary["by_position"]["0-31"]["value"] == 1 and summary["effective_ratio"] == pytest.approx(4, abs=0.3)
    assert row["references"] == [items.examples[int(row["id"])].context]  # not the example's answers


def altered(change):
    """Maps `compress` to a function that changes the memory it returns."""
    return lambda compress: lambda encoded, question: change(compress(encoded, question))


def rolled(memory):
    return replace(memory, embeds=memory.embeds.roll(1, 0), mask=memory.mask.roll(1, 0))


def zeroed(memory):
    return replace(memory, embeds=torch.zeros_like(memory.embeds))


def test_a_frozen_decoder_gains_nothing_without_the_correct_memory(items, tokenizer, unconditional, monkeypatch):
    """A memory of zeros, and that of another document, give as little gain as no memory."""
    reader = trained(items, tokenizer, "decoder.train=frozen", "compressor.ratio=4", steps=30)
    gains = {}
    compress = reader.compressor.compress
    for name, change in (("own", lambda memory: memory), ("zeroed", zeroed), ("other", rolled)):
        monkeypatch.setattr(reader.compressor, "compress", altered(change)(compress))
        gains[name] = evaluated(reader, items, tokenizer, unconditional)[0]["metrics"]["normalised_gain"]["value"]
    assert gains["own"] > 0.2 and abs(gains["zeroed"]) < 0.1 and gains["other"] < 0.1


def test_the_shuffled_context_loss_equals_swapping_two_memories(items, tokenizer, unconditional, monkeypatch):
    """The gain over it is the text's own gain."""
    reader = trained(items, tokenizer, "decoder.train=full", "compressor.ratio=4", steps=30)
    collate = Collator(tokenizer.pad_token_id)
    for size in (4, 1):  # with 1, the next text is in another batch
        shuffled = shuffled_context_nll(reader, items, collate, size)
        actual = evaluate(
            reader,
            items,
            collate,
            scores,
            Generation(max_new_tokens=8),
            size,
            unconditional=unconditional,
            shuffled=shuffled,
        )
        value = {
            name: metric["value"]
            for name, metric in summarise([row for rows in actual for row in rows], None)["metrics"].items()
        }
        assert value["ce_other"] > 1 > value["ce"] and value["own_gain"] == pytest.approx(
            value["ce_other"] - value["ce"]
        )
        assert value["ce_other"] == pytest.approx(sum(shuffled.values()) / sum(items.lengths))
    [shortest, longest] = [sorted(range(8), key=lambda i: (items.lengths[i], i))[end] for end in (0, -1)]
    monkeypatch.setattr(reader.compressor, "compress", altered(rolled)(reader.compressor.compress))
    with torch.no_grad():
        swapped = reader.eval().loss(collate([items[longest], items[shortest]]))
    assert shuffled[str(longest)] == pytest.approx(
        swapped.token_nll[0, : items.lengths[longest]].sum().item(), rel=1e-4
    )
    assert reader.objective.is_autoencoder  # the objective is restored


def test_the_shuffled_context_loss_of_a_single_text_is_empty(items, tokenizer):
    reader = tiny_reader(compose_tiny(AUTOENCODER))
    alone = tokenise_split(items.examples[:1], tokenizer, Prompt(), None, None)
    assert shuffled_context_nll(reader, alone, Collator(tokenizer.pad_token_id), 4) == {}


def test_the_unconditional_loss_is_that_of_the_plain_backbone(items, tokenizer, unconditional):
    """Prompt and text, without the context and without the end token."""
    model = build_backbone(compose_tiny([])).load()
    batch = Collator(tokenizer.pad_token_id)([items[2]])
    actual = plain_nll(model, row_ids(batch, 0, "prefix", "prompt"), row_ids(batch, 0, "context"))
    assert unconditional["2"] == pytest.approx(actual.item(), rel=1e-5)
