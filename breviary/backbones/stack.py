"""A Hugging Face decoder as a stack of layers that can be entered and left at any layer.

Shape letters: B rows, N new tokens, K keys (cached + new), D hidden width, V vocabulary.
Only this file depends on the layer signatures of Llama, Qwen2 and Qwen3; all three share one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from breviary.backbones.attention import BLOCKWISE, FLASH, FLEX, SharedPrefix, flash_mask, flex_mask
from breviary.backbones.head import Head

HALF = (torch.bfloat16, torch.float16)


class Stack(nn.Module):
    """embed -> run(layers i..j) -> norm -> head, each callable on its own.

    Every submodule is called as a module, because ZeRO-3 gathers weights in hooks on calls. `checkpointing` recomputes
    each layer's activations in the backward pass. It is non-reentrant: the reentrant form fails where a memory without
    gradient enters at a layer.
    """

    def __init__(self, model: nn.Module, keep_embedding: bool = True):
        super().__init__()
        core = getattr(model, model.base_model_prefix, model)
        self.config: PretrainedConfig = model.config
        self.embed_tokens: Any = core.embed_tokens if keep_embedding else None
        self.layers = core.layers
        self.final_norm = core.norm
        self.rotary = core.rotary_emb
        head: Any = getattr(model, "lm_head", None)
        self.lm_head: Any = None if head is None else Head.of(head)
        self.checkpointing = False
        self._compiled: Any = None  # `_call_layer`, compiled
        self.is_cast = False  # True: all weights have the stream's dtype (breviary.backbones.trainable)
        for module in self.modules():
            if is_norm(module):
                module.register_forward_hook(_keep_dtype)
        # Chat models often end a turn with a token other than the tokenizer's end token (Llama-3, Qwen).
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        self.end_ids: tuple[int, ...] = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stack:
        # .to(bfloat16) and DeepSpeed's engine, which calls .bfloat16(), would also round the rotary frequencies:
        # an error of 7% in the angle's cosine at position 2,000.
        buffers = dict(self.rotary.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in buffers.items():
            moved = self.rotary.get_buffer(name)
            if moved.dtype != buffer.dtype:
                setattr(self.rotary, name, buffer.to(moved.device))
        return self

    def round_frequencies(self, dtype: torch.dtype = torch.bfloat16) -> None:
        """Rounds the rotary frequencies as a cast of the whole model does (see `_apply`), for published numerics."""
        for name, buffer in dict(self.rotary.named_buffers()).items():
            setattr(self.rotary, name, buffer.to(dtype).to(buffer.dtype))

    def reinitialise(self) -> None:
        """Re-initialises every layer as before pretraining: maps from the model's initializer_range, norms to 1.

        The embedding, final norm and head are unchanged.
        """
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif is_norm(module):
                nn.init.ones_(module.weight)

    @property
    def width(self) -> int:
        """Hidden width D."""
        return self.config.hidden_size

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the residual stream, as loaded; trained float32 weights do not change it."""
        return self.config.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> input of layer 0, (B, N, D)."""
        return self.embed_tokens(ids).to(self.dtype)

    def run(
        self,
        states: Tensor,
        layers: range,
        positions: Tensor,
        key_mask: Tensor | Mapping[int, Tensor] | Mapping[int, SharedPrefix] | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Runs decoder layers `layers` on the residual stream. Returns (B, N, D).

        states     (B, N, D)
        positions  (B, N) rotary positions
        key_mask   (B, K) bool, valid keys: cached ones, then the new ones; attention is also causal by slot.
                   None = plain causal attention over N right-padded tokens, whose padding no valid token attends to.
                   {layer: mask} where layers hold different keys; such a mask may be (B, J, K), one for each
                   key/value head, bool or float (added to the scores, -inf = not a key), or a SharedPrefix with
                   attention(BLOCKWISE)
        cache      any object with `update(keys, values, layer) -> (keys, values)`. A cache that returns earlier keys
                   requires a key_mask: without one, sdpa would drop keys
        """
        if not len(layers):
            return states
        assert key_mask is not None or cache is None or isinstance(cache, CapturingCache), f"{cache} without a key mask"
        per_layer = key_mask if isinstance(key_mask, Mapping) else None
        inputs = self.attention_inputs(states, positions, None if isinstance(key_mask, Mapping) else key_mask)
        for index in layers:
            if per_layer is not None:
                inputs["attention_mask"] = self._attention_mask(states, per_layer[index])
            states = self.run_layer(index, states, inputs, cache)
        return states

    @contextlib.contextmanager
    def attention(self, implementation: str) -> Iterator[None]:
        """Context manager: uses another attention function, by its name in transformers."""
        own = self.config._attn_implementation
        self.config._attn_implementation = implementation
        try:
            yield
        finally:
            self.config._attn_implementation = own

    def attention_inputs(self, states: Tensor, positions: Tensor, key_mask: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments that all layers share: attention mask and rotary positions; arguments as in `run`."""
        return dict(
            attention_mask=self._attention_mask(states, key_mask),
            position_ids=positions,
            position_embeddings=self.rotary(states, positions),
        )

    def run_layer(self, index: int, states: Tensor, inputs: dict[str, Any], cache: Any = None) -> Tensor:
        """Runs one decoder layer on the residual stream (B, N, D). `inputs` is the result of `attention_inputs`."""
        inputs = dict(inputs, past_key_values=cache, use_cache=cache is not None)
        call = _call_layer if self._compiled is None or cache is not None else self._compiled
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(call, self.layers[index], states, use_reentrant=False, **inputs)
        return call(self.layers[index], states, **inputs)

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compiles one graph for all layers, with dynamic lengths; passes with a cache (decoding) are not compiled.

        backend  of torch.compile
        """
        self._compiled = torch.compile(_call_layer, dynamic=True, backend=backend)

    def keys_values(self, index: int, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of layer `index`, each (B, key/value heads, N, head width); does not run the layer.

        states     (B, N, D) input of the layer
        positions  (B, N)
        """
        layer, attention = self.layers[index], self.layers[index].self_attn
        heads = (-1, attention.head_dim)
        normed = layer.input_layernorm(states)
        keys = attention.k_proj(normed).unflatten(-1, heads)
        values = attention.v_proj(normed).unflatten(-1, heads).transpose(1, 2)
        if hasattr(attention, "k_norm"):  # Qwen3
            keys = attention.k_norm(keys)
        return rotate(keys.transpose(1, 2), *self.rotary(states, positions)), values

    def queries(self, index: int, states: Tensor, positions: Tensor | None) -> Tensor:
        """Queries of layer `index`, (B, query heads, N, head width), rotated; does not run the layer.

        states     (B, N, D) input of the layer
        positions  (B, N); None = before rotation
        """
        layer, attention = self.layers[index], self.layers[index].self_attn
        queries = attention.q_proj(layer.input_layernorm(states)).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, "q_norm"):  # Qwen3
            queries = attention.q_norm(queries)
        queries = queries.transpose(1, 2)
        return queries if positions is None else rotate(queries, *self.rotary(states, positions))

    def mixed_precision(self) -> contextlib.AbstractContextManager:
        """Autocast to the stream's dtype where that is half precision and trained weights are float32."""
        half = self.dtype in HALF and not self.is_cast
        return torch.autocast(self.embed_tokens.weight.device.type, self.dtype) if half else contextlib.nullcontext()

    def norm(self, states: Tensor) -> Tensor:
        """The backbone's final norm, (..., D) -> (..., D)."""
        return self.final_norm(states)

    def head(self, rows: Tensor) -> Tensor:
        """Logits of normed rows, (..., D) -> (..., V)."""
        return self.lm_head(rows)

    def key_value_bytes(self, layers: int) -> int:
        """Bytes of one position's keys and values in `layers` layers of a cache."""
        return key_value_bytes(self.config, layers, self.dtype)

    def _attention_mask(self, states: Tensor, key_mask: Tensor | SharedPrefix | None) -> Any:
        """The mask for the attention kernel, (B or 1, 1, N, K): causal by slot, valid keys only.

        flash-attn and flex have masks of their own. None may also mean causal with earlier keys, see BLOCKWISE.

        (B, query heads, N, K) for a key mask of each head, see `_head_mask`.

        Every slot attends to itself, so that no row is fully masked (NaN). None where no valid token would attend to
        anything else under plain causal attention: the kernel then skips the masked half of a long context, and may be
        flash attention, which accepts no mask on GPUs.
        """
        if isinstance(key_mask, SharedPrefix):
            return key_mask
        implementation = self.config._attn_implementation
        if implementation == FLASH:
            return flash_mask(key_mask, states.shape[1])
        if implementation == FLEX:
            return flex_mask(key_mask, states.shape[1], states.device, self.config.num_attention_heads)
        if key_mask is not None and key_mask.dim() == 3:
            return self._head_mask(states, key_mask)
        eager = implementation == "eager"
        N = states.shape[1]
        K = N if key_mask is None else key_mask.shape[1]
        if key_mask is not None and bool(key_mask.all()):
            key_mask = None  # one mask for all rows, if any
        is_plain = (
            N in (1, K) or implementation == BLOCKWISE if key_mask is None else N == K and _is_right_padded(key_mask)
        )
        if is_plain and not eager:
            return None
        slots_K = torch.arange(K, device=states.device)
        query_slots_N1 = slots_K[K - N :, None]
        visible = (slots_K <= query_slots_N1)[None]  # (B or 1, N, K)
        if key_mask is not None:
            visible = (visible & key_mask[:, None, :]) | (slots_K == query_slots_N1)[None]
        visible = visible[:, None]  # (B or 1, 1, N, K)
        if not eager:
            return visible  # sdpa accepts a boolean mask for every dtype; eager would add it to the scores
        zeros = torch.zeros((), dtype=states.dtype, device=states.device)
        return zeros.masked_fill(~visible, torch.finfo(states.dtype).min)

    def _head_mask(self, states: Tensor, key_mask: Tensor) -> Tensor:
        """Mask (B, query heads, N, K) from a mask of each key/value head, (B, J, K), bool or float.

        Bool only where the kernel accepts it and no score is biased. The new keys are the last N.
        """
        N, K = states.shape[1], key_mask.shape[2]
        slots_K = torch.arange(K, device=states.device)
        query_slots_N1 = slots_K[K - N :, None]
        causal_NK, own_NK = slots_K <= query_slots_N1, slots_K == query_slots_N1
        is_bool = key_mask.dtype == torch.bool
        visible = ((key_mask if is_bool else key_mask > -torch.inf)[:, :, None] & causal_NK) | own_NK
        group = self.config.num_attention_heads // key_mask.shape[1]
        if is_bool and self.config._attn_implementation != "eager":
            return visible.repeat_interleave(group, 1)
        bias = torch.zeros((), device=states.device) if is_bool else key_mask[:, :, None].float()
        scores = bias.masked_fill(~visible, torch.finfo(states.dtype).min)
        return scores.to(states.dtype).repeat_interleave(group, 1)


def _call_layer(layer: nn.Module, states: Tensor, **inputs: Any) -> Tensor:
    """One decoder layer, called as a module. The layer is an argument: all layers share one compiled graph."""
    return layer(states, **inputs)


def key_value_bytes(config: Any, layers: int, dtype: torch.dtype) -> int:
    """Bytes of one position's keys and values in `layers` layers of a cache. config: Hugging Face's, of the decoder."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return layers * 2 * config.num_key_value_heads * head_dim * dtype.itemsize


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of queries or keys (B, heads, N, head width); cos and sin (B, N, head width)."""
    left, right = heads.chunk(2, -1)
    return heads * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]


def _is_right_padded(mask: Tensor) -> bool:
    """Whether the valid columns of every row of mask (B, K) precede its padding, to which they then do not attend."""
    return not bool((mask[:, 1:] > mask[:, :-1]).any())


def is_norm(module: nn.Module) -> bool:
    """Whether a module is one of the backbone's norms: a leaf that is no linear map and no embedding."""
    is_leaf = not list(module.children()) and hasattr(module, "weight")
    return is_leaf and not isinstance(module, (nn.Linear, nn.Embedding))


def _keep_dtype(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook of norms: a float32 weight, as trained, would widen a bfloat16 stream to float32."""
    return output.to(inputs[0].dtype)


class CapturingCache:
    """Stores the keys and values of one pass over a context. Safe under recomputation: it never appends."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores keys and values, each (B, heads, N, head width), and returns them."""
        self.layers[layer] = (keys, values)
        return keys, values


class LazyLayers(Sequence[tuple[Tensor, Tensor]]):
    """Keys and values of `count` layers; each pair is computed when it is read, and not held."""

    def __init__(self, count: int, compute: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self._layers, self._compute = range(count), compute

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, layer: Any) -> Any:
        return self._compute(self._layers[layer])


class ReadOnlyCache:
    """Stored keys and values that new tokens attend to; never modified, usable any number of times."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]] | Mapping[int, tuple[Tensor, Tensor]]) -> None:
        self.layers = layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stored and new keys, (B, heads, K, head width), and the values likewise."""
        stored_keys, stored_values = self.layers[layer]
        return (
            torch.cat([stored_keys.to(keys.dtype), keys], dim=2),
            torch.cat([stored_values.to(values.dtype), values], dim=2),
        )
