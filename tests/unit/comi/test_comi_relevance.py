"""COMI with another relevance in place of the cosine."""

import pytest
import torch

from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import ReaderSpec
from comi.grouping import GainGrouping
from comi.model import COMI
from tests.tiny import disturb


@pytest.mark.parametrize("join", ["input", "depth"])
@pytest.mark.parametrize("relevance", ["attention", "bm25", "gold", "random"])
def test_a_relevance_sets_group_sizes_in_any_batch(build, ragged_examples, collate, relevance, join):
    settings = ["compressor=comi", "compressor.relevance_size=8", f"compressor.join={join}", "decoder.train=frozen"]
    reader = build([*settings, "compressor.encoder_layers=2", f"compressor.relevance={relevance}"]).eval()
    disturb(reader)
    with torch.no_grad():
        if relevance == "gold":  # the others mark none
            ragged_examples = [example for example in ragged_examples if example.documents]
        together = reader.loss(collate(ragged_examples)).nll
        alone = torch.cat([reader.loss(collate([example])).nll for example in ragged_examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_relevant_tokens_get_short_groups_and_large_weights():
    grouping = GainGrouping(alpha=2.0, redundancy_coarse=False, redundancy_fine=False)
    states, mask = torch.randn(1, 32, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 32).bool()
    relevance = (torch.arange(32) < 8).float()[None]
    groups, weights = grouping(states, mask, states[:, 0], 8, 4, relevance)
    sizes = groups[0].bincount()
    # Quotas are 32 softmax(-2, 0, 0, 0) = 1.4, 10.2, 10.2, 10.2.
    assert sizes.tolist() == [2, 10, 10, 10]
    first = weights[0][groups[0] == 1]
    ratio = float(first[0] / first[-1])  # relevant and other tokens share a group
    assert ratio == pytest.approx(float(torch.tensor(2.0).exp()), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["compressor.relevance=tfidf"], "compressor.relevance=tfidf: allowed are cosine, attention, bm25"),
        (["compressor.relevance=embedding"], "compares states of its own"),
        (["compressor.relevance=bm25", "compressor.query_free=true"], "is not used with compressor.query_free=true"),
        (["compressor.relevance_size=0"], "compressor.relevance_size=0: must be at least 1 token"),
    ],
)
def test_other_relevances_are_refused(compose, changes, message):
    [problem] = COMI.problems(ReaderSpec.of(compose(["compressor=comi", *changes])).settings, TinyBackbone(layers=4))
    assert message in problem
