"""The context encoder of vector compressors, and the two ways in which slots enter the decoder.

Shape letters: B contexts, S segments of a context, L tokens of a segment, R = B*S segment rows, P prefix tokens,
Q question tokens, G slots of a segment, M slots of a context, D hidden width.

join: input  (the papers) A separate encoder, the first n layers of the backbone with the full model's final norm,
             processes [segment ; question]. Slots pass an alignment (LSA: k decoder blocks initialised from the
             decoder's first blocks; or RAM's linear map) and enter as input embeddings.
join: depth  (ours) The decoder's own first n layers process [prefix ; segment]; slots enter the stream at layer n.
             No second copy of weights and no alignment. Related work: HiDrop (2602.23699) inserts visual tokens at a
             later layer; ComprExIT (2602.03784) compresses frozen hidden states; GMSA (2505.12215) bridges with its
             alignment block the gap between layers that does not arise here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import CapturingCache, LazyLayers, ReadOnlyCache, Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import TRAIN_MODES, freeze_learned, set_trainable
from breviary.backbones.translation import translation_between
from breviary.contract import Context, Encoded, Memory, Question, Tokens
from breviary.memory.assembly import ROUND_TO, Layout

JOINS = ("input", "depth")
SLOT_POSITIONS = ("last", "consecutive")
FINAL_NORMS = ("pretrained", "none")
ALIGNMENTS = ("lsa", "linear", "linear_lsa", "transformer_linear", "none")
LSA_INITS = ("pretrained", "random")
QUESTIONS = ("after_context", "alone")
ENCODER_TRAIN_MODES = tuple(mode for mode in TRAIN_MODES if mode not in ("attention", "qkv"))

ALLOWED_VALUES = {
    "join": JOINS,
    "slot_positions": SLOT_POSITIONS,
    "final_norm": FINAL_NORMS,
    "alignment": ALIGNMENTS,
    "lsa_init": LSA_INITS,
    "question": QUESTIONS,
    "encoder_train": ENCODER_TRAIN_MODES,
}


class ContextEncoder(nn.Module):
    """Encodes contexts segment by segment, and turns merged states into the slots of a memory.

    join            input | depth, see above
    encoder_layers  n: layers that encode the context (at depth: the layer at which slots join)
    encoder_train   full | lora | frozen: the encoder of join: input (at depth the decoder's own setting applies)
    encoder_lora_rank, encoder_lora_alpha, encoder_lora_dropout  of its adapters, with encoder_train: lora
    encoder         another backbone folder for the encoder; None = the decoder's. Its width may differ with alignment
                    linear or linear_lsa. Its tokenizer may differ; tokens and lengths here are then the encoder's
    alignment       lsa (decoder blocks) | linear (a linear map) | linear_lsa (the map, then the blocks) |
                    transformer_linear (the blocks, then the map) | none; join: input only
    frozen          encoder and alignment keep the weights of an earlier run (init_from): not trained, evaluation mode
    lsa_layers      k: decoder blocks of the alignment
    lsa_init        pretrained: the decoder's first k blocks (GMSA) | random: new weights, the ablation of GMSA, B6
    final_norm      pretrained | none: the full model's final norm on encoder and LSA outputs (the published form)
    question        after_context: the encoder processes the question after each segment | alone: by itself, once;
                    join: input only
    segment_size    tokens per segment; longer contexts are cut into consecutive segments, encoded independently
    slot_positions  at depth: last: a slot takes the position of its group's last token | consecutive: slots take
                    consecutive positions that end right before the question
    """

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        join: str = "input",
        encoder_layers: int = 8,
        encoder_train: str = "full",
        encoder: str | None = None,
        alignment: str = "lsa",
        lsa_layers: int = 1,
        final_norm: str = "pretrained",
        question: str = "after_context",
        segment_size: int = 10_000,
        slot_positions: str = "last",
        encoder_lora_rank: int = 16,
        encoder_lora_alpha: float = 32,
        encoder_lora_dropout: float = 0.0,
        frozen: bool = False,
        lsa_init: str = "pretrained",
    ):
        super().__init__()
        assert join in JOINS and alignment in ALIGNMENTS and question in QUESTIONS, (join, alignment, question)
        assert slot_positions in SLOT_POSITIONS and lsa_init in LSA_INITS, (slot_positions, lsa_init)
        self.join, self.layers, self.final_norm, self.question = join, encoder_layers, final_norm, question
        self.segment_size, self.slot_positions = segment_size, slot_positions
        self.translation = translation_between(backbone, Backbone(encoder)) if encoder else None
        # In a tuple: the decoder belongs to the reader and must not be registered twice.
        self._decoder = (decoder,)
        self.encoder = self.lsa = self.linear = None
        if join == "input":
            source = (
                backbone
                if encoder is None
                else Backbone(encoder, backbone.dtype, backbone.device, backbone.attn_implementation)
            )
            self.encoder = Stack(source.load(layers=encoder_layers, head=False))
            set_trainable(self.encoder, encoder_train, encoder_lora_rank, encoder_lora_alpha, encoder_lora_dropout)
            if final_norm == "none":
                self.encoder.final_norm = nn.Identity()
            if alignment in ("lsa", "linear_lsa", "transformer_linear"):
                self.lsa = Stack(backbone.load(layers=lsa_layers, head=False), keep_embedding=False)
                if lsa_init == "random":
                    self.lsa.reinitialise()
                set_trainable(self.lsa, "full")
                if final_norm == "none":
                    self.lsa.final_norm = nn.Identity()
            if alignment in ("linear", "linear_lsa", "transformer_linear"):
                self.linear = nn.Linear(self.encoder.width, decoder.width)
        self.frozen, self.is_linear_first = frozen, alignment == "linear_lsa"
        if frozen:
            freeze_learned(self)

    def train(self, mode: bool = True) -> ContextEncoder:
        """As `nn.Module.train`. A frozen encoder stays in evaluation mode, without dropout."""
        return super().train(mode and not self.frozen)

    @property
    def decoder(self) -> Stack:
        """The decoder of the reader."""
        return self._decoder[0]

    @property
    def layer(self) -> int:
        """The decoder layer that slots enter."""
        return 0 if self.join == "input" else self.layers

    # -------------------------------------------------------------- context

    def encode(self, context: Context, keep_keys: bool = True) -> Encoded:
        """Context tokens (B, T) -> states (B, S, L, D), independent of the question.

        keep_keys  keep each layer's keys and values where questions attend to the context; False = no question will
        """
        text = self._translated(context)
        # At depth each segment is packed with the prefix later, and widths are rounded then.
        layout = Layout.of([text.mask], round_to=ROUND_TO if self.join == "input" else 1)
        ids_BSL, mask_BSL = self._segments(layout.pack([text.ids]), layout.mask, text.ids.shape[1])
        B, S, L = ids_BSL.shape
        ids_RL, mask_RL = ids_BSL.view(B * S, L), mask_BSL.view(B * S, L)
        if self.join == "depth":
            states = self._encode_at_depth(ids_RL, mask_RL, context, S)
            return Encoded(states.view(B, S, L, -1), mask_BSL, ids_BSL)
        assert self.encoder is not None, self.join
        cache = CapturingCache() if keep_keys and self.question == "after_context" else None
        positions = torch.arange(L, device=ids_RL.device).expand(B * S, L)
        states = self.encoder.run(self.encoder.embed(ids_RL), range(self.layers), positions, cache=cache)
        pairs = [cache.layers[i] for i in range(self.layers)] if cache else []
        keys_values = [tuple(x.view(B, S, *x.shape[1:]) for x in pair) for pair in pairs]
        return Encoded(self.encoder.norm(states).view(B, S, L, -1), mask_BSL, ids_BSL, keys_values)

    def _encode_at_depth(self, ids_RL: Tensor, mask_RL: Tensor, context: Context, S: int) -> Tensor:
        """States (R, L, D) of each segment after the decoder's first n layers on [prefix ; segment]."""
        prefix = context.prefix.rows(torch.arange(len(ids_RL), device=ids_RL.device) // S)
        R, L = ids_RL.shape
        # With several segments the width is constant, so rounding saves nothing: 50 tokens would cost as much as 64.
        layout = Layout.of([prefix.mask, mask_RL], round_to=ROUND_TO if S == 1 else 1)
        offset_R = torch.arange(R, device=ids_RL.device) % S * L
        positions = layout.positions()
        in_segment = positions >= prefix.lengths[:, None]
        positions = torch.where(in_segment, positions + offset_R[:, None], positions)
        states = self.decoder.run(self.decoder.embed(layout.pack([prefix.ids, ids_RL])), range(self.layers), positions)
        return layout.unpack(states, 1).masked_fill(~mask_RL[..., None], 0)

    def _translated(self, text: Tokens) -> Tokens:
        """Context or question in the encoder's tokens."""
        return text if self.translation is None else self.translation(text)

    def _segments(self, ids_BT: Tensor, mask_BT: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Right-padded tokens, up to `longest` per row -> (B, S, L): L = segment_size where S > 1, else at least 1."""
        T = ids_BT.shape[1]  # may be rounded up beyond `longest`; S ignores that, so no segment is padding alone
        S = max(-(-longest // self.segment_size), 1)
        L = self.segment_size if S > 1 else max(T, 1)
        pad = (0, S * L - T)  # negative: cuts padding
        ids, mask = nn.functional.pad(ids_BT, pad), nn.functional.pad(mask_BT, pad)
        return ids.view(len(ids), S, L), mask.view(len(mask), S, L)

    # -------------------------------------------------------------- question

    def query(self, encoded: Encoded, question: Question) -> Tensor:
        """Mean of the question's states, one per segment: (B, S, D).

        join: input  the encoder processes the question after each segment, from the segment's cached keys and values;
                     with question: alone, once per row, without the context
        join: depth  the decoder's own states of the prompt at the input of layer n, after the final norm
        """
        B, S, L, D = encoded.states.shape
        if self.join == "depth":
            mean = _masked_mean(self.decoder.norm(question.states), question.states_mask)
            return mean[:, None].expand(B, S, D)
        assert self.encoder is not None, self.join
        tokens = self._translated(question)
        layout = Layout.of([tokens.mask])
        if self.question == "alone":
            embeds = self.encoder.embed(layout.pack([tokens.ids]))
            states = self.encoder.norm(self.encoder.run(embeds, range(self.layers), layout.positions()))
            return _masked_mean(states, layout.mask)[:, None].expand(B, S, D)
        rows = torch.arange(B * S, device=encoded.mask.device) // S
        ids_RQ, mask_RQ = layout.pack([tokens.ids])[rows], layout.mask[rows]
        mask_RL = encoded.mask.reshape(B * S, L)
        positions = mask_RL.sum(-1, keepdim=True) + torch.arange(ids_RQ.shape[1], device=ids_RQ.device)

        def segment_rows(layer: int) -> tuple[Tensor, Tensor]:
            keys, values = encoded.keys_values[layer]
            return keys.flatten(0, 1), values.flatten(0, 1)

        cache = ReadOnlyCache(LazyLayers(self.layers, segment_rows))
        states = self.encoder.run(
            self.encoder.embed(ids_RQ), range(self.layers), positions, torch.cat([mask_RL, mask_RQ], 1), cache
        )
        return _masked_mean(self.encoder.norm(states), mask_RQ).view(B, S, D)

    def similarity_states(self, encoded: Encoded) -> Tensor:
        """States (B, S, L, D) from which similarities are computed: after the final norm, with either join."""
        return encoded.states if self.join == "input" else self.decoder.norm(encoded.states)

    # -------------------------------------------------------------- slots

    def memory(
        self,
        slots: Tensor,
        mask: Tensor,
        last: Tensor,
        encoded: Encoded,
        kept: Tensor | None = None,
        embedding_stack: Stack | None = None,
    ) -> Memory:
        """The memory of each context, from the slots of its rows. A row is a segment (R = B*S) or a context (R = B).

        slots  (R, G, D) left-packed; mask (R, G)
        last   (R, G) index in the row of each slot's last token
        kept   (R, G) bool, slots that hold one token unchanged. At the input they become the decoder's embedding of the
               token, without alignment; at depth they already hold its state
        embedding_stack  stack whose embedding is used for them; default the decoder
        """
        B = len(encoded.mask)
        R, G, _ = slots.shape
        if self.join == "input":
            slots = self._align(slots, None if kept is None else mask & ~kept)
            if kept is not None:
                embeds = (embedding_stack or self.decoder).embed(encoded.ids.reshape(R, -1).gather(1, last))
                slots = torch.where(kept[..., None], embeds, slots.to(embeds.dtype))
        rows = R // B
        layout = Layout.of([mask.view(B, rows * G)], round_to=1)
        embeds = layout.pack([slots.reshape(B, rows * G, slots.shape[-1])])
        if self.join == "input":
            return Memory(embeds, layout.mask)
        tokens = encoded.mask[0].numel() // rows  # columns of a row
        offset_1 = torch.arange(rows, device=slots.device)[:, None] * tokens
        positions = layout.pack([(last.view(B, rows, G) + offset_1).view(B, rows * G)])
        if self.slot_positions == "consecutive":
            tokens_B = encoded.mask.sum((1, 2))
            positions = (tokens_B - layout.mask.sum(1))[:, None] + layout.positions()
        return Memory(embeds, layout.mask, self.layers, positions)

    def _align(self, slots: Tensor, selected: Tensor | None) -> Tensor:
        """Alignment of slots (R, G, D), with causal attention among the `selected` ones (R, G); None = all."""
        if self.is_linear_first:
            assert self.linear is not None
            slots = self.linear(slots)
        if self.lsa is not None:
            # Slots are left-packed, so with causal attention no valid slot attends to an empty one.
            packed = None if selected is None else Layout.of([selected], round_to=1)
            states = slots if packed is None else packed.pack([slots])
            positions = torch.arange(states.shape[1], device=slots.device).expand(states.shape[:2])
            states = self.lsa.norm(self.lsa.run(states, range(len(self.lsa)), positions))
            slots = states if packed is None else packed.unpack(states, 0)
        return slots if self.linear is None or self.is_linear_first else self.linear(slots)


def _masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of states (B, N, D) where mask (B, N) is True: (B, D) float32."""
    weights = mask[..., None].float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def check_context_encoder(settings: Mapping[str, Any], backbone: Any) -> list[str]:
    """Error messages for the constructor arguments of `ContextEncoder`; as `Compressor.problems`."""
    problems = [
        f"compressor.{key}={settings[key]}: allowed are {', '.join(values)}"
        for key, values in ALLOWED_VALUES.items()
        if settings[key] not in values
    ]
    problems += _check_layers(settings, backbone.config.num_hidden_layers)
    if settings["lsa_init"] == "random" and settings["alignment"] in ("linear", "none"):
        problems.append(
            f"compressor.lsa_init=random: compressor.alignment={settings['alignment']} has no decoder blocks to "
            "initialise; set compressor.lsa_init=pretrained, or compressor.alignment=lsa"
        )
    if settings["encoder_lora_rank"] < 1:
        problems.append(f"compressor.encoder_lora_rank={settings['encoder_lora_rank']}: must be at least 1, e.g. 16")
    if not 0 <= settings["encoder_lora_dropout"] < 1:
        problems.append(
            f"compressor.encoder_lora_dropout={settings['encoder_lora_dropout']}: must be from 0 to below 1, e.g. 0.05"
        )
    if settings["frozen"] and settings["join"] == "depth":
        problems.append(
            "compressor.frozen=true: with compressor.join=depth the compressor has no weights to freeze, as the "
            "decoder's own layers encode the context; set compressor.frozen=false, or compressor.join=input"
        )
    if settings["segment_size"] < 1:
        problems.append(f"compressor.segment_size={settings['segment_size']}: must be at least 1 token, e.g. 4096")
    return problems + _check_encoder_backbone(settings, backbone)


def _check_layers(settings: Mapping[str, Any], layers: int) -> list[str]:
    """Numbers of layers, for a backbone of `layers` layers."""
    problems = []
    most = layers - (settings["join"] == "depth")  # at depth at least one layer must process the slots
    has_other_encoder = settings["encoder"] is not None and settings["join"] == "input"
    if not has_other_encoder and not 1 <= settings["encoder_layers"] <= most:
        problems.append(
            f"compressor.encoder_layers={settings['encoder_layers']}: must be from 1 to {most} "
            f"for this backbone of {layers} layers, e.g. {min(8, most)}"
        )
    if settings["join"] == "input" and not 1 <= settings["lsa_layers"] <= layers:
        problems.append(
            f"compressor.lsa_layers={settings['lsa_layers']}: must be from 1 to {layers}, e.g. 1; "
            "compressor.alignment=none switches the alignment off"
        )
    return problems


def _check_encoder_backbone(settings: Mapping[str, Any], backbone: Any) -> list[str]:
    """The folder `compressor.encoder`, its layers, width and tokenizer."""
    if settings["encoder"] is None:
        return []
    if settings["join"] == "depth":
        return [
            f"compressor.encoder={settings['encoder']}: with compressor.join=depth the context is encoded by the "
            "decoder's own layers; set compressor.encoder=null or compressor.join=input"
        ]
    encoder = Backbone(settings["encoder"])
    problems = encoder.problems()
    if problems:
        return [problem.replace("backbone.path", "compressor.encoder") for problem in problems]
    if not 1 <= settings["encoder_layers"] <= encoder.config.num_hidden_layers:
        problems.append(
            f"compressor.encoder_layers={settings['encoder_layers']}: must be from 1 to "
            f"{encoder.config.num_hidden_layers}, the layers of compressor.encoder={settings['encoder']}"
        )
    widths = encoder.config.hidden_size, backbone.config.hidden_size
    if widths[0] != widths[1] and settings["alignment"] not in ("linear", "linear_lsa"):
        problems.append(
            f"compressor.encoder={settings['encoder']}: its width {widths[0]} differs from the decoder's "
            f"{widths[1]}, which compressor.alignment={settings['alignment']} cannot bridge; give an encoder "
            "of the same width, or compressor.alignment=linear_lsa (or linear)"
        )
    try:
        tokens = len(encoder.tokenizer())
    except ValueError as error:
        return problems + [str(error).replace("backbone.path", "compressor.encoder")]
    if encoder.config.vocab_size < tokens:
        problems.append(
            f"compressor.encoder={settings['encoder']}: has embeddings for {encoder.config.vocab_size} tokens, but its "
            f"tokenizer has {tokens}; give the folder the tokenizer that the model was trained with"
        )
    return problems
