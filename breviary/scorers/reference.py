"""Three scorers as slow, readable code: one context, one head and one token at a time, steps numbered as published.

Input is what a plain decoder layer computes for [prefix ; context ; prompt]: queries of H heads and keys of J heads, as
nested tensors (heads, tokens, d). Head h of the queries reads head h // (H / J) of the keys. `prefix` and `context` are
numbers of tokens. A score of infinity is kept before all others. Tests compare the fast scorers with this file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_row(query: Tensor, keys: Tensor) -> list[float]:
    """Softmax of one query (d,) over the keys (N, d) that it sees."""
    logits = [float(query @ key) / math.sqrt(len(query)) for key in keys]
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def snapkv(
    queries: Tensor, keys: Tensor, prefix: int, context: int, window: int, kernel: int, pooling: str
) -> list[list[float]]:
    """Scores of each key head and context token; rotated queries and keys of all tokens.

    The question is known where tokens follow the context: then these are the prompt, and the last of them observe.
    """
    group, total = len(queries) // len(keys), keys.shape[1]
    known = total > prefix + context
    # 1. Observers: the last tokens of the prompt, or of the context.
    observers = range(max(total - window, prefix + context * known), total)
    scores = []
    for head in range(len(keys)):
        # 2. Sum of their attention over all visible keys; mean over the query heads of the group.
        received = [0.0] * context
        for query_head in range(head * group, (head + 1) * group):
            for i in observers:
                row = attention_row(queries[query_head, i], keys[head, : i + 1])
                for j in range(context):
                    if prefix + j <= i and prefix + j not in observers:
                        received[j] += row[prefix + j] / group
        # 3. Pooling over neighbours, zero outside the candidates.
        pooled = []
        for j in range(context):
            near = [received[n] if 0 <= n < context else 0.0 for n in range(j - kernel // 2, j + kernel // 2 + 1)]
            pooled.append({"avg": sum(near) / kernel, "max": max(near), "none": received[j]}[pooling])
        # 4. Observers in the context are kept.
        scores.append([math.inf if prefix + j in observers else pooled[j] for j in range(context)])
    return scores


def h2o(queries: Tensor, keys: Tensor, prefix: int, context: int, budget: int) -> list[list[float]]:
    """Scores of each key head and context token; rotated queries and keys of [prefix ; context]."""
    group, scores = len(queries) // len(keys), []
    for head in range(len(keys)):
        # 1. Sum over all context tokens of the attention that each one pays; mean over the query heads of the group.
        received = [0.0] * context
        for query_head in range(head * group, (head + 1) * group):
            for i in range(prefix, prefix + context):
                row = attention_row(queries[query_head, i], keys[head, : i + 1])
                for j in range(i - prefix + 1):
                    received[j] += row[prefix + j] / group
        # 2. Half of the budget is kept for the most recent tokens.
        scores.append([math.inf if j >= context - budget // 2 else received[j] for j in range(context)])
    return scores


def expected_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rotations: list[Tensor],
    prefix: int,
    context: int,
    sinks: int,
    epsilon: float,
) -> list[list[float]]:
    """Scores of each key head and context token.

    queries    before rotation, of [prefix ; context]; keys rotated
    rotations  (d, d) matrix of each future position, such that a rotated query is rotation @ query
    """
    group, d = len(queries) // len(keys), queries.shape[-1]
    own = max(sinks - prefix, 0)  # sinks in the context
    rotation = sum(rotations) / len(rotations)  # 1. mean rotation of the future positions
    scores = []
    for head in range(len(keys)):
        weights = [0.0] * context
        for query_head in range(head * group, (head + 1) * group):
            # 2. Mean and covariance of the queries without the sinks, turned by the mean rotation.
            seen = [queries[query_head, prefix + j] for j in range(own, context)]
            mean = sum(seen) / len(seen)
            covariance = sum(torch.outer(query - mean, query - mean) for query in seen) / len(seen)
            mean, covariance = rotation @ mean, rotation @ covariance @ rotation.T
            # 3. Expected attention: the softmax over all entries but the sinks.
            logits = []
            for j in range(own, context):
                key = keys[head, prefix + j]
                logits.append(float(mean @ key) / math.sqrt(d) + float(key @ covariance @ key) / (2 * d))
            exponentials = [math.exp(logit - max(logits)) for logit in logits]
            for j in range(own, context):
                weights[j] += exponentials[j - own] / sum(exponentials) / group
        # 4. Times the norm of the value.
        norms = [float(values[head, prefix + j].norm()) for j in range(context)]
        scores.append([math.inf if j < own else (weights[j] + epsilon) * norms[j] for j in range(context)])
    return scores
