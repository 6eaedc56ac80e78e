"""KVzip (arXiv 2505.23416): what the model needs to repeat the context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from breviary.contract import Tokens
from breviary.scorers.base import Scorer, best_entries
from breviary.scorers.views import LayerKeys

BUDGETS = ("all", "head")
FIRST = "\n\nRepeat the previous context exactly.\n"
NEXT = "\n\nRepeat the part of the previous context exactly, starting with {start}\n"
START_TOKENS = 8  # of the chunk before, quoted by NEXT


class KVzip(Scorer):
    """The largest attention that a token receives while its own chunk of the context is fed again behind the cache.

    Each chunk follows a request to repeat the context. The softmax is over prefix, this chunk and the fed tokens.

    chunk_size  tokens of a chunk
    budget      all: the best entries over all layers and heads (published) | head: the same number for every head
    Cost: two to four more prefills, once for each context: kernels do not return the attention of all fed tokens.
    Deviation: exactly the requested number of entries is kept; the released code compares with a threshold and keeps
    one too few.
    """

    def __init__(self, chunk_size: int = 2000, budget: str = "all"):
        super().__init__()
        if chunk_size < 1:
            raise ValueError(f"scorer.chunk_size={chunk_size}: must be at least 1 token, e.g. 2000")
        if budget not in BUDGETS:
            raise ValueError(f"scorer.budget={budget}: allowed are {', '.join(BUDGETS)}")
        self.chunk_size, self.budget = chunk_size, budget

    def score(self, view: LayerKeys) -> Tensor:
        """The largest attention of any fed token and query head."""
        blocks = [block.amax((2, 3)) for block in view.attention_blocks()]
        return torch.stack(blocks).amax(0) if blocks else view.keys[..., 0].float() * 0

    def allocate(self, scores: list[Tensor], masks: Tensor, budget: Tensor) -> list[Tensor]:
        """Entries of each head."""
        if self.budget == "head":
            return super().allocate(scores, masks, budget)
        together = torch.stack(scores, 1).masked_fill(~masks[:, None, None], -torch.inf)  # (B, L, J, T)
        counts = best_entries(together, budget * together.shape[1] * together.shape[2]).sum(-1)
        return [counts[:, layer] for layer in range(len(scores))]

    def probes(self, ids: Tensor, mask: Tensor, tokenizer: Any) -> list[tuple[Tokens, slice]]:
        """One request and chunk after another; rows without that chunk are padding."""
        rows = [row[valid] for row, valid in zip(ids, mask)]
        probes = []
        for start in range(0, ids.shape[1], self.chunk_size):
            end = start + self.chunk_size
            fed = []
            for row in rows:
                request = FIRST
                if start:
                    quoted = tokenizer.decode(row[max(start - START_TOKENS, 0) : start].tolist())
                    request = NEXT.format(start=quoted)
                request_ids = tokenizer(request, add_special_tokens=False).input_ids if len(row) > start else []
                fed.append(torch.cat([row.new_tensor(request_ids), row[start:end]]))
            valid = [torch.ones_like(one, dtype=torch.bool) for one in fed]
            tokens = Tokens(pad_sequence(fed, batch_first=True), pad_sequence(valid, batch_first=True))
            probes.append((tokens, slice(start, end)))
        return probes

    def probe_tokens(self, context_tokens: int) -> int:
        """A chunk and the longest request."""
        return min(context_tokens, self.chunk_size) + 64
