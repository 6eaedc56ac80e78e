"""Each scorer against a case that was computed by hand."""

import math

import pytest
import torch

from breviary.memory.observers import Observers
from breviary.scorers.adakv import AdaKV
from breviary.scorers.attention_matching import AttentionMatching
from breviary.scorers.base import Scorer, pool, round_to_sum, select
from breviary.scorers.expected_attention import ExpectedAttention
from breviary.scorers.h2o import H2O
from breviary.scorers.keydiff import KeyDiff
from breviary.scorers.knorm import Knorm
from breviary.scorers.kvzip import KVzip
from breviary.scorers.pyramidkv import PyramidKV
from breviary.scorers.random_entries import RandomEntries
from breviary.scorers.snapkv import SnapKV
from breviary.scorers.streaming_llm import StreamingLLM
from breviary.scorers.tova import TOVA
from breviary.scorers.views import LayerKeys, LayerQueries


def view(keys, values=None, budget=2, prefix=0, **parts):
    """One context, one head per row of keys (J, T, d)."""
    keys = torch.tensor(keys, dtype=torch.float32)[None]
    values = keys if values is None else torch.tensor(values, dtype=torch.float32)[None]
    mask = torch.ones(1, keys.shape[2], dtype=torch.bool)
    prefix_keys = keys.new_zeros(1, keys.shape[1], prefix, keys.shape[3])
    prefix_mask = torch.ones(1, prefix, dtype=torch.bool)
    return LayerKeys(0, 1, keys, values, mask, prefix_keys, prefix_mask, torch.tensor([budget]), **parts)


def kept(scores, count, tokens=None):
    """Indices that head 0 keeps."""
    scores = torch.as_tensor(scores, dtype=torch.float32).view(1, -1, scores.shape[-1])
    mask = torch.ones(1, scores.shape[-1], dtype=torch.bool)
    chosen = select(scores, torch.full(scores.shape[:2], count), mask)
    return chosen[0, 0].nonzero()[:, 0].tolist()


def attending(weights, is_last_in_context=0):
    """A view whose observers' attention is `weights` (J, G, W, T); the last so many tokens are the observers."""
    weights = torch.tensor(weights)
    one = view(torch.zeros(weights.shape[0], weights.shape[3], 1).tolist())
    W, T = weights.shape[2:]
    index = torch.arange(T - W, T)[None] if is_last_in_context else torch.full((1, W), T)
    nothing = torch.zeros(1, W, 0, dtype=torch.bool)
    one.observers = Observers(weights[None], torch.ones(1, W, dtype=torch.bool), index, one.keys[:, :, :0], nothing)
    one.attention = lambda: weights[None]
    one.attention_blocks = lambda size=1: (weights[None, :, :, w : w + 1] for w in range(W))
    return one


def test_streaming_llm_keeps_sinks_and_the_last_tokens():
    keys = torch.zeros(1, 10, 1).tolist()
    scores = StreamingLLM(sinks=2).score(view(keys))
    assert kept(scores, 6) == [0, 1, 6, 7, 8, 9]
    assert kept(scores, 2) == [0, 1] and kept(scores, 1) == [0]
    assert kept(StreamingLLM(sinks=2).score(view(keys, prefix=1)), 3) == [0, 8, 9]
    assert kept(StreamingLLM(sinks=2).score(view(keys, prefix=5)), 3) == [7, 8, 9]


@pytest.mark.parametrize(
    ("pooling", "expected"), [("avg", [1, 2, 4, 5]), ("max", [2, 3, 4, 5]), ("none", [1, 3, 4, 5])]
)
def test_snapkv_pools_and_keeps_its_window(pooling, expected):
    received = torch.tensor([[[[0.3, 0.4, 0.1, 0.6, 0, 0], [0, 0, 0, 0, 0, 0]]]]).tolist()
    scores = SnapKV(window=2, kernel=3, pooling=pooling).score(attending(received, is_last_in_context=2))
    assert kept(scores, 4) == expected
    assert kept(scores, 1) == [5]  # of the window the last ones
    known = SnapKV(window=2, kernel=3, pooling="none").score(attending(received))
    assert kept(known, 2) == [1, 3]  # the prompt observes: every context token competes


def test_tova_averages_all_heads():
    weights = [[[[0.5, 0.1, 0.3, 0.1]]], [[[0.1, 0.5, 0.2, 0.2]]]]
    scores = TOVA().score(attending(weights))
    assert torch.equal(scores[:, 0], scores[:, 1])
    assert kept(scores, 3) == [0, 1, 2]


def test_h2o_sums_what_each_token_receives():
    # Attention rows of the specification's case, as keys and queries of one-hot logits.
    rows = torch.tensor([[1, 0, 0, 0], [0.6, 0.4, 0, 0], [0.5, 0.3, 0.2, 0], [0.1, 0.1, 0.5, 0.3]])
    logits = rows.clamp(min=1e-9).log() * 2  # head width 4: scores are divided by 2
    keys, queries = torch.eye(4)[None, None], logits[None, None, None]
    mask = torch.ones(1, 4, dtype=torch.bool)

    def rotary(positions):
        return torch.ones(1, 4, 4), torch.zeros(1, 4, 4)

    layer = LayerQueries(lambda index: queries, keys, mask, torch.arange(4)[None], rotary, keys[:, :, :0], mask[:, :0])
    observed = H2O().observe(layer)
    torch.testing.assert_close(observed[0, :, 0], torch.tensor([2.2, 0.8, 0.7, 0.3]))
    one = view(torch.eye(4)[None].tolist(), budget=3, observed=observed)
    assert kept(H2O().score(one), 3) == [0, 1, 3]


def test_knorm_keeps_small_keys():
    assert kept(Knorm().score(view([[[3.0], [1.0], [2.0], [4.0]]])), 2) == [1, 2]


def test_keydiff_compares_with_the_mean_of_normalised_keys():
    keys = [[[10, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]]]
    scores = KeyDiff().score(view(keys))
    torch.testing.assert_close(-scores[0, 0], torch.tensor([0.7071, 0.9899, 0.7071, 0.9899]), atol=1e-3, rtol=0)
    assert kept(scores, 2) == [0, 2]


@pytest.mark.parametrize(("epsilon", "expected"), [(0.0, [0, 1]), (0.02, [0, 2])])
def test_expected_attention_weighs_values(epsilon, expected):
    observed = torch.tensor([[[1.0, 0, 0, 0, 0, 2]]])  # mean (1, 0), covariance diag(0, 2)
    one = view([[[1, 0], [0, 1.5], [0, 0]]], [[[2, 0], [1, 0], [3, 0]]], observed=observed)
    scores = ExpectedAttention(sinks=0, epsilon=epsilon).score(one)
    torch.testing.assert_close(
        scores[0, 0], (torch.tensor([0.332, 0.504, 0.164]) + epsilon) * torch.tensor([2.0, 1, 3]), atol=2e-3, rtol=0
    )
    assert kept(scores, 2) == expected


def test_expected_attention_observes_mean_and_covariance():
    queries = torch.randn(2, 1, 2, 9, 4)
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    keys = torch.randn(2, 1, 9, 4)

    def rotary(positions):  # no rotation
        return torch.ones(*positions.shape, 4), torch.zeros(*positions.shape, 4)

    at = torch.arange(9).expand(2, -1)
    layer = LayerQueries(lambda index: queries, keys, mask, at, rotary, keys[:, :, :0], mask[:, :0])
    observed = ExpectedAttention(sinks=2).observe(layer)
    for row, length in enumerate((9, 6)):
        for head in range(2):
            counted = queries[row, 0, head, 2:length]
            torch.testing.assert_close(observed[row, head, :4], counted.mean(0))
            torch.testing.assert_close(observed[row, head, 4:].view(4, 4), counted.T.cov(correction=0))


def test_pyramidkv_budgets_fall_and_sum_to_the_total():
    scores = [torch.rand(1, 2, 200) for _ in range(4)]
    masks = torch.ones(1, 200, dtype=torch.bool)
    counts = PyramidKV(Knorm(), beta=20).allocate(scores, masks, torch.tensor([40]))
    assert [count[0].tolist() for count in counts] == [[78, 78], [53, 53], [27, 27], [2, 2]]
    short = PyramidKV(Knorm(), beta=20).allocate(
        [score[..., :60] for score in scores], masks[:, :60], torch.tensor([40])
    )
    assert [int(count[0, 0]) for count in short] == [60, 47, 33, 20]
    flat = PyramidKV(Knorm(), beta=1).allocate(scores, masks, torch.tensor([40]))
    assert all(count.eq(40).all() for count in flat)


@pytest.mark.parametrize(("floor", "expected"), [(0.0, [4, 0]), (0.5, [3, 1]), (1.0, [2, 2])])
def test_adakv_shares_out_a_layers_budget(floor, expected):
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.6], [0.05, 0.04, 0.03, 0.02]]])
    [counts] = AdaKV(Knorm(), floor).allocate([scores], torch.ones(1, 4, dtype=torch.bool), torch.tensor([2]))
    assert counts.tolist() == [expected]


def test_kvzip_keeps_the_largest_attention_over_all_layers():
    scores = KVzip().score(attending([[[[0.3, 0.5, 0.1], [0.2, 0.1, 0.6]]]]))
    assert scores[0, 0].tolist() == pytest.approx([0.3, 0.5, 0.6])
    assert kept(scores, 2) == [1, 2]
    masks = torch.ones(1, 3, dtype=torch.bool)
    low, high = torch.tensor([[[0.1, 0.1, 0.2]]]), torch.tensor([[[0.9, 0.8, 0.7]]])
    assert [int(c) for c in KVzip().allocate([low, high], masks, torch.tensor([2]))] == [1, 3]
    assert [int(c[0, 0]) for c in KVzip(budget="head").allocate([low, high], masks, torch.tensor([2]))] == [2, 2]


class Words:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return type("Encoding", (), {"input_ids": [ord(c) for c in text]})

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_kvzip_repeats_each_chunk():
    ids = torch.tensor([[ord(c) for c in "abcdef"], [*map(ord, "xy"), 0, 0, 0, 0]])
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    probes = KVzip(chunk_size=4).probes(ids, mask, Words())
    texts = [["".join(map(chr, row[valid])) for row, valid in zip(tokens.ids, tokens.mask)] for tokens, _ in probes]
    assert texts[0][0].endswith("exactly.\nabcd") and texts[0][1].endswith("exactly.\nxy")
    assert "starting with abcd\n" in texts[1][0] and texts[1][0].endswith("ef") and texts[1][1] == ""
    assert [part for _, part in probes] == [slice(0, 4), slice(4, 8)]


def test_attention_matching_reproduces_the_attentions_output():
    log2 = math.log(2)
    one = view([[[0.0], [log2], [2 * log2]]], [[[0.0], [1.0], [2.0]]], observed=torch.tensor([[[0.0], [1.0], [1.0]]]))
    scorer = AttentionMatching(queries=3, ridge=1e-12)
    chosen = torch.tensor([[[True, False, True]]])
    # Three tokens are all observed: the middle query repeats the last one, which changes no exact fit.
    values, bias = scorer.fit(one, chosen)
    assert bias[0, 0, [0, 2]].exp().tolist() == pytest.approx([5 / 3, 4 / 3], abs=1e-4)
    assert values[0, 0, [0, 2], 0].tolist() == pytest.approx([0.4, 1.75], abs=1e-4)
    assert kept(scorer.score(one), 2) == [1, 2]


def test_attention_matching_observes_evenly_spaced_tokens():
    index = AttentionMatching(queries=4).observed_index(torch.tensor([[8], [3], [9]]))
    assert index.tolist() == [[1, 3, 5, 7], [0, 1, 2, -1], [1, 3, 5, 8]]


def test_random_entries_do_not_depend_on_the_batch():
    keys = torch.zeros(2, 12, 1).tolist()
    scores = RandomEntries().score(view(keys))
    assert not torch.equal(scores[:, 0], scores[:, 1])
    assert torch.equal(RandomEntries().score(view(torch.zeros(2, 7, 1).tolist())), scores[..., :7])
    assert not torch.equal(RandomEntries(seed=1).score(view(keys)), scores)


# ------------------------------------------------------------------ parts


def test_observers_attend_causally_to_visible_keys_only():
    torch.manual_seed(0)
    keys, prefix, own = torch.randn(1, 1, 5, 4), torch.randn(1, 1, 2, 4), torch.randn(1, 1, 3, 4)
    queries = torch.randn(1, 1, 2, 3, 4)
    own_visible = torch.ones(3, 3).tril().bool()[None]
    observers = Observers(queries, torch.tensor([[True, True, False]]), torch.full((1, 3), 5), own, own_visible)
    weights = observers.attention(keys, torch.ones(1, 3, 5).bool(), prefix, torch.ones(1, 2).bool())
    for g in range(2):
        for w in range(2):
            seen = torch.cat([prefix[0, 0], keys[0, 0], own[0, 0, : w + 1]])
            expected = (queries[0, 0, g, w] @ seen.T / 2).softmax(-1)[2:7]
            torch.testing.assert_close(weights[0, 0, g, w], expected)
    assert weights[0, 0, :, 2].eq(0).all()


def test_blocks_of_observers_equal_all_at_once():
    torch.manual_seed(0)
    one = view(torch.randn(2, 7, 4).tolist(), prefix=1)
    index = torch.arange(2, 7)[None]
    one.observers = Observers(
        torch.randn(1, 2, 3, 5, 4), index >= 0, index, one.keys[:, :, :0], one.mask.new_zeros(1, 5, 0)
    )
    torch.testing.assert_close(torch.cat([*one.attention_blocks(2)], 3), one.attention())


def test_select_prefers_the_lower_index_and_never_padding():
    scores = torch.tensor([[[1.0, 1, 1, 9]]])
    assert select(scores, torch.tensor([[2]]), torch.tensor([[True, True, True, False]])).tolist() == [
        [[True, True, False, False]]
    ]


def test_pool_counts_borders_as_zero():
    mask = torch.ones(1, 4, dtype=torch.bool)
    scores = torch.tensor([[[3.0, -1, 4, 0]]])
    assert pool(scores, mask, 3, "avg")[0, 0].tolist() == pytest.approx([2 / 3, 2, 1, 4 / 3])


def test_round_to_sum_gives_the_largest_remainders_one_more():
    shares = torch.tensor([[78, 52.67, 27.33, 2]])
    assert round_to_sum(shares, torch.tensor([160])).tolist() == [[78, 53, 27, 2]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SnapKV(window=0), "scorer.window=0"),
        (lambda: SnapKV(window=65), "1 to 64"),
        (lambda: SnapKV(kernel=4), "scorer.kernel=4"),
        (lambda: SnapKV(pooling="sum"), "allowed are avg, max, none"),
        (lambda: StreamingLLM(-1), "scorer.sinks=-1"),
        (lambda: KVzip(budget="layer"), "allowed are all, head"),
        (lambda: PyramidKV(Knorm(), 0.5), "scorer.beta=0.5"),
        (lambda: AdaKV(Knorm(), 2), "scorer.floor=2"),
        (lambda: AdaKV(AttentionMatching()), "must rank entries only"),
        (lambda: ExpectedAttention(epsilon=-1), "epsilon=-1"),
        (lambda: AttentionMatching(ridge=0), "ridge=0"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_base_scorer_keeps_the_budget_everywhere():
    counts = Scorer().allocate([torch.zeros(2, 3, 5)] * 2, torch.ones(2, 5).bool(), torch.tensor([1, 4]))
    assert [count.tolist() for count in counts] == [[[1] * 3, [4] * 3]] * 2
