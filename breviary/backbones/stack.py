"""A Hugging Face decoder as a stack that one may enter and leave at any layer.

Shape letters: B rows, N new tokens, K keys (cached + new), D hidden width, V vocabulary.
This file alone knows the layer signatures of Llama, Qwen2 and Qwen3; all three share one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig


class Stack(nn.Module):
    """embed -> run(layers i..j) -> norm -> head, each callable by itself.

    Every submodule is used by calling it, which is what ZeRO-3 hooks into. `checkpointing` recomputes each
    layer's activations in the backward pass (non-reentrant: frozen memory that enters at a layer would break the
    reentrant form).
    """

    def __init__(self, model: nn.Module, keep_embedding: bool = True):
        super().__init__()
        core = getattr(model, model.base_model_prefix, model)
        self.config: PretrainedConfig = model.config
        self.embed_tokens = core.embed_tokens if keep_embedding else None
        self.layers = core.layers
        self.final_norm = core.norm
        self.rotary = core.rotary_emb
        self.lm_head = getattr(model, "lm_head", None)
        self.checkpointing = False
        # Chat models often end a turn with another token than the tokenizer's (Llama-3, Qwen).
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        self.end_ids: tuple[int, ...] = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stack:
        # .to(bfloat16), and DeepSpeed's engine, which calls .bfloat16(), would round the rotary frequencies as well:
        # an error of 7% in the angle's cosine at position 2,000.
        exact = dict(self.rotary.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self.rotary.get_buffer(name)
            if moved.dtype != buffer.dtype:
                setattr(self.rotary, name, buffer.to(moved.device))
        return self

    def reinitialise(self) -> None:
        """Draws every layer anew, as before pretraining (maps by the model's initializer_range, norms 1); embedding, final
        norm and head stay as they are."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif not list(module.children()) and hasattr(module, "weight"):  # a norm
                nn.init.ones_(module.weight)

    @property
    def width(self) -> int:
        """Hidden width D."""
        return self.config.hidden_size

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the residual stream, as loaded; weights trained in float32 do not change it."""
        return self.config.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> stream before layer 0 (B, N, D)."""
        return self.embed_tokens(ids).to(self.dtype)

    def run(
        self, states: Tensor, layers: range, positions: Tensor, key_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Runs decoder layers `layers` on the stream.

        states     (B, N, D)
        positions  (B, N) rotary positions
        key_mask   (B, K) bool over cached keys and then the new ones, causal on top of it by slot;
                   None = plain causal over N tokens padded on the right only, whose padding no valid token can see
        cache      anything with `update(keys, values, layer) -> (keys, values)`; one that hands out earlier keys
                   needs a key_mask (without one sdpa would drop keys)
        """
        if not len(layers):
            return states
        assert key_mask is not None or cache is None or isinstance(cache, CapturingCache), f"{cache} without a key mask"
        attending = self.attention_inputs(states, positions, key_mask)
        for index in layers:
            states = self.run_layer(index, states, attending, cache)
        return states

    def attention_inputs(self, states: Tensor, positions: Tensor, key_mask: Tensor | None = None) -> dict[str, Any]:
        """What every layer must know of where the states (B, N, D) stand and of what they see; arguments as in `run`."""
        return dict(
            attention_mask=self._attention_mask(states, key_mask),
            position_ids=positions,
            position_embeddings=self.rotary(states, positions),
        )

    def run_layer(self, index: int, states: Tensor, attending: dict[str, Any], cache: Any = None) -> Tensor:
        """Runs one decoder layer on the stream (B, N, D); `attending` is that method's result."""
        call = dict(attending, past_key_values=cache, use_cache=cache is not None)
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self.layers[index], states, use_reentrant=False, **call)
        return self.layers[index](states, **call)

    def keys_values(self, index: int, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What layer `index` attends to where its input is `states` (B, N, D) at `positions` (B, N), without running it:
        rotated keys and values, each (B, key/value heads, N, head width)."""
        layer, attention = self.layers[index], self.layers[index].self_attn
        heads = (-1, attention.head_dim)
        normed = layer.input_layernorm(states)
        keys = attention.k_proj(normed).unflatten(-1, heads)
        values = attention.v_proj(normed).unflatten(-1, heads).transpose(1, 2)
        if hasattr(attention, "k_norm"):  # Qwen3
            keys = attention.k_norm(keys)
        keys = keys.transpose(1, 2)
        cos, sin = (turn[:, None] for turn in self.rotary(states, positions))
        left, right = keys.chunk(2, -1)
        return keys * cos + torch.cat([-right, left], -1) * sin, values

    def mixed_precision(self) -> contextlib.AbstractContextManager:
        """Mixed precision where the stream is not float32: trained weights are kept in float32."""
        half = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.embed_tokens.weight.device.type, self.dtype) if half else contextlib.nullcontext()

    def norm(self, states: Tensor) -> Tensor:
        """The backbone's final norm, (..., D) -> (..., D)."""
        return self.final_norm(states)

    def head(self, rows: Tensor) -> Tensor:
        """Logits of normed rows, (..., D) -> (..., V)."""
        return self.lm_head(rows)

    def key_value_bytes(self, layers: int) -> int:
        """Bytes that one position's keys and values take in `layers` layers of cache."""
        config = self.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return layers * 2 * config.num_key_value_heads * head_dim * self.dtype.itemsize

    def _attention_mask(self, states: Tensor, key_mask: Tensor | None) -> Tensor | None:
        """Causal by slot, valid keys only; every slot sees itself, so that no row is fully masked (NaN).

        None where that says no more than plain causal attention, so that a kernel passes over what a mask would only hide: half
        of a long context read before answering.
        """
        eager = self.config._attn_implementation == "eager"
        N = states.shape[1]
        K = N if key_mask is None else key_mask.shape[1]
        if not eager and (key_mask is None or (N in (1, K) and bool(key_mask.all()))):
            return None
        slots_K = torch.arange(K, device=states.device)
        query_slots_N1 = slots_K[K - N :, None]
        visible = (slots_K <= query_slots_N1)[None]  # (1, N, K)
        if key_mask is not None:
            visible = (visible & key_mask[:, None, :]) | (slots_K == query_slots_N1)[None]
        visible = visible[:, None]  # (B or 1, 1, N, K)
        if not eager:
            return visible  # sdpa takes booleans in every type; eager would add them
        zeros = torch.zeros((), dtype=states.dtype, device=states.device)
        return zeros.masked_fill(~visible, torch.finfo(states.dtype).min)


class CapturingCache:
    """Keeps the keys and values of one pass over a context. Safe under recomputation: it never appends."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores (B, heads, N, head width) and hands them on."""
        self.layers[layer] = (keys, values)
        return keys, values


class ReadOnlyCache:
    """Lets new tokens attend to stored keys and values without changing them, any number of times."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]] | Mapping[int, tuple[Tensor, Tensor]]) -> None:
        self.layers = layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stored and new keys (B, heads, K, head width), likewise values."""
        stored_keys, stored_values = self.layers[layer]
        return (
            torch.cat([stored_keys.to(keys.dtype), keys], dim=2),
            torch.cat([stored_values.to(values.dtype), values], dim=2),
        )
