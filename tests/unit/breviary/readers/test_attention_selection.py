"""Reading by attention: the selection, what upper layers see, and its losses."""

import pytest
import torch

from breviary.contract import Context
from breviary.readers.attention_selection import AttentionSelection
from breviary.selection.head_scores import unit_features, unit_means
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
    reader.compressor.head_scores.register_forward_hook(lambda module, inputs, out: recorded.update(mass=inputs[0]))
    with torch.no_grad():
        reader.memory(batch)
        attentions = model(torch.as_tensor(ids)[None], output_attentions=True).attentions
    for w, layer in enumerate((0, 1)):
        expected = attentions[layer][0, :, P + T :, P : P + T].mean(1).T
        torch.testing.assert_close(recorded["mass"][0, :T, w], expected, rtol=1e-4, atol=1e-6)


def test_the_contrastive_loss_wants_every_gold_segment():
    compressor = AttentionSelection.__new__(AttentionSelection)
    torch.nn.Module.__init__(compressor)
    compressor.contrastive_weight = 1.0
    mask, numbers = torch.ones(1, 8, dtype=torch.bool), torch.arange(8)[None] // 2
    gold = torch.tensor([[True, True, True, False, False, False, False, False]])
    one, both = torch.tensor([[0.8, 0.0, 0.1, 0.1]]), torch.tensor([[0.4, 0.4, 0.1, 0.1]])
    (loss_one, count), (loss_both, _) = (compressor._contrastive(x, numbers, gold, mask) for x in (one, both))
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
    assert reader.compressor.head_scores.readout.grad.abs().sum() > 0
    lower = [p for name, p in reader.named_parameters() if p.requires_grad and "layers.0." in name and "q_proj" in name]
    assert lower and any(p.grad is not None and p.grad.abs().sum() > 0 for p in lower)
    output.nll.sum().backward()
    assert all(p.grad is not None for p in reader.parameters() if p.requires_grad)


def test_the_gate_lets_the_answer_teach_the_choice(build, ragged):
    readers = [
        build([*SETTINGS, "decoder.train=lora", "compressor.heads=linear", f"compressor.gate={gate}"]).train()
        for gate in ("none", "straight_through")
    ]
    readers[1].load_state_dict(readers[0].state_dict())
    plain, gated = (reader.loss(ragged).nll for reader in readers)
    torch.testing.assert_close(gated, plain, rtol=0, atol=0)
    plain.sum().backward()
    assert readers[0].compressor.head_scores.readout.grad is None
    gated.sum().backward()
    assert readers[1].compressor.head_scores.readout.grad.abs().sum() > 0


def test_skims_are_means_of_what_a_segment_drops(build, ragged, monkeypatch):
    reader = reader_of(build, "compressor.skim=mean", "compressor.segment_size=4", "compressor.ratio=2")
    seen, read = [], reader.compressor._read_kept

    def record(states, kept, gate):
        seen.append((states, kept))
        return read(states, kept, gate)

    monkeypatch.setattr(reader.compressor, "_read_kept", record)
    with torch.no_grad():
        memory = reader.memory(ragged)
        encoded = reader.compressor.encode(Context(ragged.context.ids, ragged.context.mask, ragged.prefix))
    [(states, upper)] = seen
    skimmed = 0
    for b in range(len(ragged)):
        P, T = int(ragged.prefix.lengths[b]), int(ragged.context.lengths[b])
        kept = memory.trace["kept_share"][b, :T].bool().tolist()
        above = upper[b, P : P + T].tolist()
        assert all(above[t] for t in range(T) if kept[t]) and bool(upper[b, :P].all())
        assert sum(above) <= -(-T // 2)
        for start in range(0, T, 4):
            dropped = [t for t in range(start, min(start + 4, T)) if not kept[t]]
            skims = [t for t in dropped if above[t]]
            assert skims in ([], dropped[-1:])
            if skims:
                mean = encoded.states[b, 0, [P + t for t in dropped]].mean(0)
                torch.testing.assert_close(states[b, P + skims[0]], mean)
                skimmed += 1
        sizes = [sum(layer.counts[b]) for layer in memory.layers]
        assert sizes[0] < sizes[-1] or all(kept)
    assert skimmed > 0


def test_another_relevance_chooses(build, ragged):
    reader = reader_of(build, "compressor.relevance=gold", "compressor.ratio=3")
    with torch.no_grad():
        memory = reader.memory(ragged)
    for b in range(len(ragged)):
        T = int(ragged.context.lengths[b])
        kept = memory.trace["kept_share"][b, :T].bool()
        assert int(kept.sum()) == -(-T // 3)
        marked = ragged.evidence[b][ragged.context.mask[b]]
        segments = [range(start, min(start + 8, T)) for start in range(0, T, 8)]
        of_gold = [s for s in segments if bool(marked[list(s)].any())]
        others = [s for s in segments if s not in of_gold]
        if sum(len(s) for s in of_gold) >= int(kept.sum()):
            assert not any(bool(kept[list(s)].any()) for s in others)
        else:
            assert all(bool(kept[list(s)].all()) for s in of_gold)


def test_unit_features():
    x, numbers = torch.tensor([[[1.0], [3], [5], [7]]]), torch.tensor([[0, 0, 1, -1]])
    means, valid = unit_means(x, numbers, 2)
    assert means[0, :, 0].tolist() == [2, 5] and valid.tolist() == [[True, True]]
    features, _ = unit_features(x, numbers, 2)
    logs = torch.tensor([[2.0, 3], [5, 5]]).log()
    torch.testing.assert_close(features[0], logs - logs.mean(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 9}, "compressor.layer=9: must be from 1 to 3"),
        ({"window": 0}, "compressor.window=0: must be at least 1 layer"),
        ({"heads": "sum"}, "allowed are mean, max, linear"),
        ({"heads": "linear", "units": "tokens"}, "heads=linear reads segments"),
        ({"skim": "mean", "units": "tokens"}, "skim=mean reads segments"),
        ({"skim": "sum"}, "compressor.skim=sum: allowed are none, mean"),
        ({"gate": "soft"}, "compressor.gate=soft: allowed are none, straight_through"),
        ({"relevance": "cosine"}, "compressor.relevance=cosine: compares encoder states"),
        ({"relevance": "bm25", "gate": "straight_through"}, "compressor.gate=straight_through needs attention"),
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
