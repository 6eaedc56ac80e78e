"""Memory as prompt embeddings, for servers that accept embeddings instead of token ids, such as vLLM.

A memory at `join: input` is a sequence of input embeddings. Prefix, memory and prompt form one tensor (tokens, width),
from which the decoder alone, with merged adapters, generates the reader's answer.

Formats of vLLM: `{"prompt_embeds": tensor}` for `vllm.LLM.generate`; for the Completions API of
`vllm serve --enable-prompt-embeds`, the key `prompt_embeds` with the base64 of the bytes that torch.save writes.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from torch import Tensor

from breviary.contract import Batch, Compressor, Generation, Memory
from breviary.memory.assembly import Layout

# ------------------------------------------------------------------ which readers


def embeds_problem(kind: type, is_deep: bool) -> str | None:
    """Why the memory of a compressor or reader of this class is no prompt of embeddings; None where it is one.

    is_deep  its slots join behind a lower layer of the decoder
    """
    why = "prompt embeddings enter the decoder below its first layer"
    if not issubclass(kind, Compressor):
        return f"{kind.__name__} holds state in every layer, and {why}"
    if kind.keeps_cache:
        return f"the memory of {kind.__name__} is keys and values of every layer, and {why}"
    if is_deep:
        return f"the slots join at depth, and {why}; train with compressor.join=input"
    return None


@torch.no_grad()
def prompt_embeds(reader: Any, batch: Batch) -> list[Tensor]:
    """Embeddings (N, D) of [prefix ; memory ; prompt] of each row, in the dtype of the decoder's stream.

    Raises: ValueError for a reader whose memory is no sequence of input embeddings.
    """
    compressor = getattr(reader, "compressor", None)
    problem = embeds_problem(type(compressor or reader), bool(compressor and compressor.layer))
    if problem:
        raise ValueError(f"prompt_embeds: {problem}")
    memory, decoder = reader.memory(batch), reader.decoder
    assert isinstance(memory, Memory), type(memory)
    layout = Layout.of([batch.prefix.mask, memory.mask, batch.prompt.mask], round_to=1)
    slots = memory.embeds.to(decoder.dtype)
    embeds = layout.pack([decoder.embed(batch.prefix.ids), slots, decoder.embed(batch.prompt.ids)])
    return [row[mask] for row, mask in zip(embeds, layout.mask)]


# ------------------------------------------------------------------ format


def encode_embeds(embeds: Tensor) -> str:
    """The tensor as the Completions API takes it."""
    content = io.BytesIO()
    torch.save(embeds.detach().cpu().contiguous().clone(), content)  # cloned: a view would save its whole storage
    return base64.b64encode(content.getvalue()).decode("ascii")


def decode_embeds(text: str) -> Tensor:
    """What `encode_embeds` wrote."""
    tensor: Tensor = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    return tensor


def completion_request(model: str, embeds: Tensor, generation: Generation) -> dict[str, Any]:
    """Body of a request to /v1/completions."""
    return {
        "model": model,
        "prompt_embeds": encode_embeds(embeds),
        "max_tokens": generation.max_new_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "stop": list(generation.stop),
    }
