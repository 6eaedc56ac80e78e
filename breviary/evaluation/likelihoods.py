"""Likelihoods that metrics read beside the decoded answer: of each choice, and of an answer without its end token.

Both read a context once: they follow the answer, when the reader's context cache holds the batch's contexts.
"""

from __future__ import annotations

from dataclasses import replace

from breviary.contract import Batch, LossOutput, Reader, Tokens


def choice_nll(reader: Reader, batch: Batch) -> list[list[float]]:
    """Nats of each choice of each example, end token left out; [] for an example without choices."""
    nats: list[list[float]] = [[] for _ in batch.examples]
    for option in batch.choices or []:
        rows = option.mask.any(1).nonzero()[:, 0].tolist()
        if rows:
            part = replace(batch, answer=option, choices=None).rows(rows)
            for row, value in zip(rows, reader.loss(part).nll.tolist()):
                nats[row].append(value)
    return nats


def continuation_nll(reader: Reader, batch: Batch, output: LossOutput) -> list[tuple[float, int]]:
    """(nats, tokens) of each reference without its end token; output: the reader's loss of the batch.

    A reader that reports no losses of single tokens computes them in a further pass.
    """
    tokens = [max(0, length - 1) for length in batch.answer.lengths.tolist()]
    if output.supervised is not None and output.token_nll is not None:
        rows = zip(output.token_nll, output.supervised.mask)
        return [(sum(nll[mask].tolist()[:-1]), count) for (nll, mask), count in zip(rows, tokens)]
    used = [row for row, count in enumerate(tokens) if count]
    nats = [0.0] * len(batch)
    if used:
        part = replace(batch, answer=_without_last(batch.answer), choices=None).rows(used)
        for row, value in zip(used, reader.loss(part).nll.tolist()):
            nats[row] = value
    return list(zip(nats, tokens))


def _without_last(tokens: Tokens) -> Tokens:
    """The same tokens without the last real one of each row."""
    mask = tokens.mask & (tokens.mask.cumsum(1) < tokens.lengths[:, None])
    return Tokens(tokens.ids, mask)
