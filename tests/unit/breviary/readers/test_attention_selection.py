"""Reading by attention: the selection, what upper layers see, and its losses."""

import pytest
import torch

from breviary.contract import Context
from breviary.readers.attention_selection import AttentionSelection, _segment_means
from tests.tiny import disturb, greedy_ids, plain_nll, row_ids

SETTINGS = ["compressor=attention", "compressor.layer=2", "compressor.window=2", "compressor.segment_size=8"]
FROZEN = "decoder.train=frozen"


def reader_of(build, *overrides):
    reader = build([*SETTINGS, FROZEN, *overrides]).eval()
    disturb(reader)
    return reader


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_everything_kept_is_the_plain_model(build, family, ragged):
    reader = build([*SETTINGS, FROZEN, f"backbone.family={family}", "compressor.ratio=1"]).eval()
    from breviary.backbones.tiny import TinyBackbone

    model = TinyBackbone(family).load().eval()
    with torch.no_grad():
        nll = reader.loss(ragged).nll
        for b in range(len(ragged)):
            plain = plain_nll(model, row_ids(ragged, b, "prefix", "context", "prompt"), row_ids(ragged, b, "answer"))
            torch.testing.assert_close(nll[b], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [[], ["compressor.heads=linear"], ["compressor.units=tokens", "compressor.heads=max"]]
)
def test_batches_and_budgets(build, changes, ragged_examples, collate):
    reader = reader_of(build, *changes)
    alone = [collate([example]) for example in ragged_examples]
    with torch.no_grad():
        single = torch.cat([reader.loss(batch).nll for batch in alone])
        ids = [greedy_ids(reader, batch)[0] for batch in alone]
        for batch in (collate(ragged_examples), collate(ragged_examples, side="left")):
            output = reader.loss(batch)
            torch.testing.assert_close(output.nll, single, rtol=1e-5, atol=1e-5)
            assert output.slots.tolist() == (-(-batch.context.lengths // 4)).tolist()
            assert greedy_ids(reader, batch) == ids


def test_upper_layers_see_kept_tokens_alone(build, ragged):
    """Slow twin: the plain stack with dropped columns removed before layer n."""
    reader = reader_of(build)
    decoder, n = reader.decoder, reader.compressor.select_layer
    with torch.no_grad():
        memory = reader.memory(ragged)
        encoded = reader.compressor.encode(Context(ragged.context.ids, ragged.context.mask, ragged.prefix))
        for b in range(len(ragged)):
            P, T = int(ragged.prefix.lengths[b]), int(ragged.context.lengths[b])
            kept = [*range(P), *(P + t for t in memory.trace["kept_share"][b, :T].nonzero()[:, 0].tolist())]
            states, positions = encoded.states[b : b + 1, 0, kept], torch.tensor([kept])
            for index in range(n, len(decoder)):
                keys, values = decoder.keys_values(index, states, positions)
                own = memory.layers[index].rows([b]).padded()
                torch.testing.assert_close(own[0], keys, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(own[1], values, rtol=1e-4, atol=1e-5)
                states = decoder.run(states, range(index, index + 1), positions)
            below = memory.layers[n - 1].rows([b]).padded()[0]
            torch.testing.assert_close(below, encoded.keys_values[n - 1][0][b, 0][None, :, kept])


def test_mass_is_the_prompts_mean_attention(build, ragged_examples, collate):
    """Against the weights of the plain model with eager attention."""
    batch = collate(ragged_examples[:1])
    reader = build([*SETTINGS, FROZEN, "backbone.attn_implementation=eager"]).eval()
    from breviary.backbones.tiny import TinyBackbone

    model = TinyBackbone("llama", attn_implementation="eager").load().eval()
    ids = row_ids(batch, 0, "prefix", "context", "prompt")
    P, T = int(batch.prefix.lengths[0]), int(batch.context.lengths[0])
    recorded = {}
    compressor = reader.compressor
    scores = compressor._scores

    def record(mass, mask):
        recorded["mass"] = mass
        return scores(mass, mask)

    compressor._scores = record
    with torch.no_grad():
        reader.memory(batch)
        attentions = model(torch.as_tensor(ids)[None], output_attentions=True).attentions
    for w, layer in enumerate((0, 1)):
        expected = attentions[layer][0, :, P + T :, P : P + T].mean(1).T
        torch.testing.assert_close(recorded["mass"][0, :T, w], expected, rtol=1e-4, atol=1e-6)


def test_the_contrastive_loss_wants_every_gold_segment():
    compressor = AttentionSelection.__new__(AttentionSelection)
    torch.nn.Module.__init__(compressor)
    compressor.units, compressor.heads, compressor.segment_size, compressor.contrastive_weight = (
        "segments",
        "mean",
        2,
        1.0,
    )
    mask = torch.ones(1, 8, dtype=torch.bool)
    gold = torch.tensor([[True, True, True, False, False, False, False, False]])
    one, both = torch.tensor([[0.8, 0.0, 0.1, 0.1]]), torch.tensor([[0.4, 0.4, 0.1, 0.1]])
    (loss_one, count), (loss_both, _) = (compressor._contrastive(x, gold, mask) for x in (one, both))
    assert int(count) == 1 and loss_both < loss_one
    expected = -torch.tensor(0.4 / 0.6).log()
    torch.testing.assert_close(loss_both, expected, rtol=1e-5, atol=1e-6)


def test_both_losses_reach_the_weights(build, ragged):
    reader = build(
        [*SETTINGS, "decoder.train=lora", "compressor.heads=linear", "compressor.contrastive_weight=0.3"]
    ).train()
    disturb(reader)
    output = reader.loss(ragged)
    assert int(output.parts["contrastive"][1]) == int(reader.counts(ragged)["contrastive"]) > 0
    output.parts["contrastive"][0].backward(retain_graph=True)
    assert reader.compressor.readout.grad.abs().sum() > 0
    lower = [p for name, p in reader.named_parameters() if p.requires_grad and "layers.0." in name and "q_proj" in name]
    assert lower and any(p.grad is not None and p.grad.abs().sum() > 0 for p in lower)
    output.nll.sum().backward()
    assert all(p.grad is not None for p in reader.parameters() if p.requires_grad)


def test_segment_means():
    x, mask = torch.tensor([[[1.0], [3], [5], [7]]]), torch.tensor([[True, True, True, False]])
    means, valid = _segment_means(x, mask, 2)
    assert means[0, :, 0].tolist() == [2, 5] and valid.tolist() == [[True, True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 9}, "compressor.layer=9: must be from 1 to 3"),
        ({"window": 0}, "compressor.window=0: must be at least 1 layer"),
        ({"heads": "sum"}, "allowed are mean, max, linear"),
        ({"heads": "linear", "units": "tokens"}, "heads=linear reads segments"),
        ({"kernel": 2}, "compressor.kernel=2: must be an odd number"),
        ({"contrastive_weight": -1}, "must be 0 (off) or more"),
    ],
)
def test_problems_name_the_key(change, message):
    from omegaconf import OmegaConf

    from breviary.backbones.tiny import TinyBackbone

    settings = OmegaConf.to_container(OmegaConf.load("configs/compressor/attention.yaml")) | {"window": 1} | change
    [problem] = AttentionSelection.problems(settings, TinyBackbone(layers=4))
    assert message in problem
