"""Memory tokens: learned vectors follow each segment, and their final states are the memory.

ICAE (arXiv 2307.06945, spec C1), and GMSA's control for its group merging (2505.12215, "TCP-AE").
Shape letters: B contexts, T context tokens, S segments of a context, L tokens of a segment, K memory tokens of a
segment, R segments with tokens, N width of a row of tokens and memory tokens, M slots of a context, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.sharding import gathered
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import LINEAR, inject_adapters
from breviary.contract import TASKS, Context, Encoded, Memory, Question
from breviary.memory.assembly import ROUND_TO, Layout
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget

COUNTS = ("fixed", "by_ratio")
HEADS = ("none", "mlp")
MEMORY_ID = -1  # id of memory tokens in Encoded.ids
ADAPTER = "encoder"  # name of the encoder's adapters in peft


class MemoryTokens(BudgetedCompressor):
    """Learned memory tokens follow every segment; their states after the last layer and final norm are the slots.

    The encoder uses the decoder's weights with separate LoRA adapters: the decoder does not use the encoder's adapters,
    nor the encoder the decoder's. With decoder.train=full both train the same weights. A context of T tokens is split
    into ceil(T / (memory_tokens * ratio)) segments of equal length (ICAE). The slots of all segments are concatenated
    as input embeddings and followed by one vector for the task (ICAE's [AE], [LM], [FT]).

    ratio, slots, ratio_choices, ratio_draw  as in Budget. `slots` are divided evenly among the segments
    memory_tokens   maximum number of memory tokens after a segment
    count           fixed: always all of them, so that only full segments reach the requested ratio (ICAE) |
                    by_ratio: ceil(tokens of the segment / ratio)
    task_tokens     True: append the task's vector, which counts as a slot; an empty context has no slots at all
    head            none | mlp: two linear maps with a GELU between them, on each slot
    encoder_layers  layers of the encoder; None = all
    lora_rank, lora_alpha, lora_dropout, lora_targets  of the encoder's adapters ('all-linear', or projection names)
    Deviations from ICAE's code: batches of any size without padding between parts; with objective=reconstruct every
    text has both losses, the published code draws one; its second half is the continuation, always after [LM].
    Prompts are as published with an empty dataset.question and prompt.template (experiment=icae_pretrain).
    Costs the layers' pass over all tokens and memory tokens. Independent of the question.
    """

    supports_merge = False

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        *,
        ratio: int | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
        ratio_draw: str = "step",
        memory_tokens: int = 128,
        count: str = "fixed",
        task_tokens: bool = True,
        head: str = "none",
        encoder_layers: int | None = None,
        lora_rank: int = 128,
        lora_alpha: float = 32,
        lora_dropout: float = 0.05,
        lora_targets: str | list[str] = "all-linear",
    ):
        super().__init__()
        assert count in COUNTS and head in HEADS, (count, head)
        self.budget, self.count = Budget(ratio, slots, ratio_choices, ratio_draw=ratio_draw), count
        self.tokens_per_segment = _memory_tokens_per_segment(memory_tokens, slots)
        targets = list(LINEAR if lora_targets == "all-linear" else lora_targets)
        config = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets)
        encoder, self.adapters = stack_with_own_adapters(
            decoder, len(decoder) if encoder_layers is None else encoder_layers, config
        )
        # In tuples: the weights belong to the decoder and must not be registered twice.
        self._encoder, self._decoder = (encoder,), (decoder,)
        with gathered([decoder.embed_tokens.weight]):
            scale = decoder.embed_tokens.weight.float().std().item()  # same scale as word embeddings
        D = decoder.width
        self.memory_embeds = nn.Parameter(scale * torch.randn(self.tokens_per_segment, D))
        self.task_embeds = nn.Parameter(scale * torch.randn(len(TASKS), D)) if task_tokens else None
        self.head = nn.Identity() if head == "none" else nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))

    # -------------------------------------------------------------- context

    def encode(self, context: Context) -> Encoded:
        """States (B, S, N, D) after the final norm, of each segment and its memory tokens (id MEMORY_ID)."""
        layout = Layout.of([context.mask], round_to=1)
        ids_BSL, mask_BSL, used_BSK = self._segments(layout.pack([context.ids]), layout.mask)
        # One host sync, as every row and column left out here is one that no layer computes.
        B, S, real, L, K, N = _needed(mask_BSL, used_BSK)
        index_R = torch.tensor(real, device=mask_BSL.device)
        ids_RL, mask_RL, used_RK = (
            x[:, :S, :width].flatten(0, 1)[index_R] for x, width in ((ids_BSL, L), (mask_BSL, L), (used_BSK, K))
        )
        rows = Layout.of([mask_RL, used_RK])
        encoder = self._encoder[0]
        encoder.train(self.training)
        encoder.checkpointing = self.checkpointing
        memory_RKD = self.memory_embeds[:K].to(encoder.dtype).expand(len(ids_RL), -1, -1)
        states = rows.pack([encoder.embed(ids_RL), memory_RKD])[:, :N]  # right-padded
        states = encoder.norm(encoder.run(states, range(len(encoder)), rows.positions()[:, :N]))
        ids_RN = rows.pack([ids_RL, torch.full_like(used_RK, MEMORY_ID, dtype=ids_RL.dtype)])[:, :N]

        def with_empty_segments(x: Tensor) -> Tensor:
            """(R, N, ...) of the computed segments -> (B, S, N, ...)."""
            return x.new_zeros(B * S, *x.shape[1:]).index_copy(0, index_R, x).unflatten(0, (B, S))

        return Encoded(*(with_empty_segments(x) for x in (states, rows.mask[:, :N], ids_RN)))

    def _segments(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Left-packed ids as segments: ids (B, S, L), mask (B, S, L), mask (B, S, K) of their memory tokens."""
        (B, T), K, lengths_B = ids_BT.shape, self.tokens_per_segment, mask_BT.sum(1)
        ratio = self.budget.ratio_per_row(ids_BT, mask_BT, self.training)
        min_ratio = self.budget.min_ratio(self.training)
        if min_ratio is None:
            assert self.budget.slots is not None  # exactly one of ratio and slots is set
            S = self.budget.slots // K
            segments_B = lengths_B.clamp(min=1, max=S)
        else:
            S = max(-(-T // (K * min_ratio)), 1)
            segments_B = (-(-lengths_B // (K * ratio))).clamp(min=1)
        L = max(min(T, K * ratio) if isinstance(ratio, int) else T, 1)
        size_B11 = (-(-lengths_B // segments_B))[:, None, None]  # tokens of each of the context's segments
        column_1SL = torch.arange(L, device=ids_BT.device)
        index_BSL = torch.arange(S, device=ids_BT.device)[:, None] * size_B11 + column_1SL
        mask_BSL = (column_1SL < size_B11) & (index_BSL < lengths_B[:, None, None])
        ids_BT = nn.functional.pad(ids_BT, (0, max(1 - T, 0)))
        ids_BSL = (
            ids_BT.gather(1, index_BSL.clamp(max=max(T, 1) - 1).flatten(1)).view(B, S, L).masked_fill(~mask_BSL, 0)
        )
        tokens_BS1 = mask_BSL.sum(-1, keepdim=True)
        ratio_B11 = ratio if isinstance(ratio, int) else ratio[:, None, None]
        used_BS1 = K * (tokens_BS1 > 0) if self.count == "fixed" else -(-tokens_BS1 // ratio_B11)
        used_BSK = torch.arange(K, device=ids_BT.device) < used_BS1
        return ids_BSL, mask_BSL, used_BSK

    @property
    def checkpointing(self) -> bool:
        """The decoder's setting, as the encoder consists of its layers."""
        return self._decoder[0].checkpointing

    # -------------------------------------------------------------- slots

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """The states of all memory tokens through the head, then the task's vector."""
        is_memory_BN = (encoded.mask & (encoded.ids == MEMORY_ID)).flatten(1)
        # One host sync: columns beyond the most slots of a context would pass the head and the whole decoder.
        max_slots = max(int(is_memory_BN.sum(1).max()), 1)
        layout = Layout.of([is_memory_BN], round_to=1)
        slots_BMD = self.head(layout.pack([encoded.states.flatten(1, 2)])[:, :max_slots])
        mask_BM = layout.mask[:, :max_slots]
        if self.task_embeds is None:
            return Memory(slots_BMD.masked_fill(~mask_BM[..., None], 0), mask_BM)
        B = len(slots_BMD)
        task_B1D = self.task_embeds[TASKS.index(question.task)].to(slots_BMD.dtype).expand(B, 1, -1)
        joined = Layout.of([mask_BM, mask_BM.any(1, keepdim=True)], round_to=1)
        return Memory(joined.pack([slots_BMD, task_B1D]), joined.mask)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for budget, counts, layers and adapters."""
        problems = check_budget(settings)
        for key, values in {"count": COUNTS, "head": HEADS}.items():
            if settings[key] not in values:
                problems.append(f"compressor.{key}={settings[key]}: allowed are {', '.join(values)}")
        for key, example in (("memory_tokens", 128), ("lora_rank", 128)):
            if settings[key] < 1:
                problems.append(f"compressor.{key}={settings[key]}: must be at least 1, e.g. {example}")
        layers, own = backbone.config.num_hidden_layers, settings["encoder_layers"]
        if own is not None and not 1 <= own <= layers:
            problems.append(
                f"compressor.encoder_layers={own}: must be from 1 to {layers} for this backbone, or null for all"
            )
        if not 0 <= settings["lora_dropout"] < 1:
            problems.append(f"compressor.lora_dropout={settings['lora_dropout']}: must be from 0 to below 1, e.g. 0.05")
        targets = settings["lora_targets"]
        if targets != "all-linear" and (isinstance(targets, str) or not targets or set(targets) - set(LINEAR)):
            problems.append(
                f"compressor.lora_targets={targets}: must be all-linear, or a list of {', '.join(LINEAR)}, "
                "e.g. [q_proj,v_proj]"
            )
        return problems

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`.

        Slots take positions of the decoder. A segment and its memory tokens take positions of the encoder, which has as
        many.
        """
        room = max(positions - others - settings["task_tokens"], 0)
        K = _memory_tokens_per_segment(settings["memory_tokens"], settings["slots"])
        if settings["slots"] is not None:
            return max(positions - K, 0) if settings["slots"] <= room else 0
        ratio = int(min([settings["ratio"], *(settings["ratio_choices"] or [])]))
        max_ratio = int(max([settings["ratio"], *(settings["ratio_choices"] or [])]))
        slots = room // K * K or (room if settings["count"] == "by_ratio" else 0)
        return slots * ratio if K * max_ratio + K <= positions else min(slots * ratio, max(positions - K, 0))


def _needed(mask_BSL: Tensor, used_BSK: Tensor) -> tuple[int, int, list[int], int, int, int]:
    """What the segments' tokens and memory tokens take, of the widths that any segment could.

    Returns B, the largest number S of segments of a context, the indices b * S + s of segments with a token (at least
    one, as every rank calls every module), the most tokens L and memory tokens K of a segment, and the width N of the
    longest one with its memory tokens, rounded up.
    """
    B = len(mask_BSL)
    tokens, memory = torch.stack([mask_BSL.sum(-1), used_BSK.sum(-1)]).tolist()
    S = max(1, *(sum(1 for length in row if length) for row in tokens))
    real = [b * S + s for b in range(B) for s in range(S) if tokens[b][s]] or [0]
    sizes = [(tokens[i // S][i % S], memory[i // S][i % S]) for i in real]
    longest = max(length + own for length, own in sizes)
    N = -(-max(longest, 1) // ROUND_TO) * ROUND_TO
    return B, S, real, max(max(length for length, _ in sizes), 1), max(max(own for _, own in sizes), 1), N


def _memory_tokens_per_segment(memory_tokens: int, slots: int | None) -> int:
    """Memory tokens per segment. A budget in slots is divided evenly among the fewest segments that hold it."""
    return memory_tokens if slots is None else slots // -(-slots // memory_tokens)


# ------------------------------------------------------------------ two stacks on one set of weights


def stack_with_own_adapters(stack: Stack, layers: int, config: LoraConfig) -> tuple[Stack, nn.ModuleDict]:
    """A second stack of the first `layers` layers on the same weights, with separate adapters.

    Modules that hold weights are shared, so that moving, gathering or training them affects both stacks. Their
    containers and the adapters are new; adapters of `stack` are left out. Returns the stack, which must not be
    registered, and its adapters by module name, which must be: float32, trainable.
    """
    twin = _copy_containers(stack)
    twin.layers = twin.layers[:layers]
    twin.lm_head = None
    requires_grad = {parameter: parameter.requires_grad for parameter in twin.parameters()}
    inject_adapters(config, twin.layers, ADAPTER)  # freezes all other weights
    for parameter, value in requires_grad.items():
        parameter.requires_grad_(value)
    adapters = nn.ModuleDict()
    for name, module in twin.layers.named_modules():
        if isinstance(module, BaseTunerLayer):
            adapters[name.replace(".", "_")] = nn.ModuleDict(
                {"a": module.lora_A, "b": module.lora_B, "dropout": module.lora_dropout}
            )
    for parameter in adapters.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return twin, adapters


def _copy_containers(module: nn.Module) -> nn.Module:
    """A copy of the module tree with shared leaves: containers are new, without hooks; adapters become their base."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    children = dict(module.named_children())
    if not children:
        return module
    twin = object.__new__(type(module))
    nn.Module.__init__(twin)
    twin.__dict__ |= {key: value for key, value in module.__dict__.items() if key not in twin.__dict__}
    twin._parameters |= module._parameters
    twin._buffers |= module._buffers
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _copy_containers(child)
    return twin
