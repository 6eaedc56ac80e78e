"""Reading a context for a vector compressor, and the two ways of its slots into the decoder.

Shape letters: B contexts, S segments of a context, L tokens of a segment, R = B*S segment rows, P prefix tokens,
Q question tokens, G slots of a segment, M slots of a context, D hidden width.

join: input  (the papers) an encoder of its own, the first n layers of the backbone with the full model's final norm,
             reads [segment ; question]; slots pass an alignment (LSA: k decoder blocks initialised from the decoder's
             first; or a linear map, RAM's) and enter as input embeddings.
join: depth  (ours) the decoder's own first n layers read [prefix ; segment]; slots enter the stream at layer n.
             No second copy of weights, nothing to align. Relatives: HiDrop (2602.23699) lets visual tokens enter
             late, ComprExIT (2602.03784) compresses frozen hidden states, GMSA's (2505.12215) alignment block mends
             the gap between layers that is never opened here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import CapturingCache, ReadOnlyCache, Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import freeze_learned, set_trainable
from breviary.backbones.translation import translation_between
from breviary.contract import Context, Encoded, Memory, Question, Tokens
from breviary.memory.assembly import ROUND_TO, Layout

JOINS = ("input", "depth")

SLOT_POSITIONS = ("last", "consecutive")

FINAL_NORMS = ("pretrained", "none")

ALIGNMENTS = ("lsa", "linear", "linear_lsa", "transformer_linear", "none")

LSA_INITS = ("pretrained", "random")

QUESTIONS = ("after_context", "alone")


class ContextEncoder(nn.Module):
    """Reads contexts segment by segment, gives states to compare and values to merge, and delivers the slots.

    join            input | depth, see above
    encoder_layers  n: layers that read the context (at depth: the layer at which slots join)
    encoder_train   full | lora | frozen: the encoder of join: input (at depth the decoder's own setting counts)
    encoder_lora_rank, encoder_lora_alpha, encoder_lora_dropout  of its adapters, with encoder_train: lora
    encoder         another backbone folder for the encoder; None = the decoder's. Its width may differ with alignment:
                    linear and linear_lsa, and its tokenizer may be another: all that is said of tokens here is then said of
                    its own
    alignment       lsa (decoder blocks) | linear (a map of its own) | linear_lsa (the map, then the blocks) |
                    transformer_linear (the blocks, then the map) | none; join: input only
    frozen          encoder and alignment keep what an earlier run trained (init_from): not trained, in evaluation mode
    lsa_layers      k: decoder blocks of the alignment
    lsa_init        pretrained: the decoder's first k blocks (GMSA) | random: drawn anew, the ablation of GMSA, B6
    final_norm      pretrained | none: the full model's final norm on encoder and LSA outputs (the published form)
    question        after_context | alone: how the encoder reads the question; join: input only
    segment_size    tokens read at once; longer contexts are read in consecutive segments, each by itself
    slot_positions  last | consecutive: at depth a slot stands at its group's last token, or slots stand side by side
                    right before the question
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
        self._decoder = (decoder,)  # in a tuple: the decoder belongs to the reader and must not be registered twice
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
        """As nn.Module's; what is frozen stays in evaluation mode: no dropout on memory that nobody trains."""
        return super().train(mode and not self.frozen)

    @property
    def decoder(self) -> Stack:
        """The decoder of the reader that this reading serves."""
        return self._decoder[0]

    @property
    def layer(self) -> int:
        """The decoder layer that slots enter."""
        return 0 if self.join == "input" else self.layers

    # -------------------------------------------------------------- context

    def encode(self, context: Context) -> Encoded:
        """Context tokens (B, T) -> states (B, S, L, D), independent of the question."""
        # At depth the prefix still comes before each segment: widths are rounded there.
        text = self._own(context)
        layout = Layout.of([text.mask], round_to=ROUND_TO if self.join == "input" else 1)
        ids_BSL, mask_BSL = self._segments(layout.pack([text.ids]), layout.mask, text.ids.shape[1])
        B, S, L = ids_BSL.shape
        ids_RL, mask_RL = ids_BSL.view(B * S, L), mask_BSL.view(B * S, L)
        if self.join == "depth":
            states = self._read_at_depth(ids_RL, mask_RL, context, S)
            return Encoded(states.view(B, S, L, -1), mask_BSL, ids_BSL)
        cache = CapturingCache() if self.question == "after_context" else None
        positions = torch.arange(L, device=ids_RL.device).expand(B * S, L)
        states = self.encoder.run(self.encoder.embed(ids_RL), range(self.layers), positions, cache=cache)
        kept = [cache.layers[i] for i in range(self.layers)] if cache else []
        kept = [tuple(x.view(B, S, *x.shape[1:]) for x in pair) for pair in kept]
        return Encoded(self.encoder.norm(states).view(B, S, L, -1), mask_BSL, ids_BSL, kept)

    def _read_at_depth(self, ids_RL: Tensor, mask_RL: Tensor, context: Context, S: int) -> Tensor:
        """[prefix ; segment] through the decoder's first n layers; the prefix's own states are the reader's affair."""
        prefix = context.prefix.rows(torch.arange(len(ids_RL), device=ids_RL.device) // S)
        R, L = ids_RL.shape
        # Several segments are as wide as the segment size, always: rounded up, rows of 50 tokens would cost those of 64.
        layout = Layout.of([prefix.mask, mask_RL], round_to=ROUND_TO if S == 1 else 1)
        offset_R = torch.arange(R, device=ids_RL.device) % S * L
        positions = layout.positions()
        in_segment = positions >= prefix.lengths[:, None]
        positions = torch.where(in_segment, positions + offset_R[:, None], positions)
        states = self.decoder.run(self.decoder.embed(layout.pack([prefix.ids, ids_RL])), range(self.layers), positions)
        return layout.unpack(states, 1).masked_fill(~mask_RL[..., None], 0)

    def _own(self, text: Tokens) -> Tokens:
        """Context or question in the tokens of what reads."""
        return text if self.translation is None else self.translation(text)

    def _segments(self, ids_BT: Tensor, mask_BT: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Right-padded tokens, at most `longest` a row, -> (B, S, L): L = segment_size where S > 1, else at least 1."""
        T = ids_BT.shape[1]  # may be rounded up beyond `longest`, which must not open a segment of padding alone
        S = max(-(-longest // self.segment_size), 1)
        L = self.segment_size if S > 1 else max(T, 1)
        pad = (0, S * L - T)  # negative: cuts padding
        ids, mask = nn.functional.pad(ids_BT, pad), nn.functional.pad(mask_BT, pad)
        return ids.view(len(ids), S, L), mask.view(len(mask), S, L)

    # -------------------------------------------------------------- question

    def query(self, encoded: Encoded, question: Question) -> Tensor:
        """Mean of the question's states, one per segment: (B, S, D).

        join: input  the encoder reads the question after each segment, on the segment's kept keys and values; or, with
                     question: alone, once, as a row of its own
        join: depth  the decoder's own states of the prompt where they enter layer n, after the final norm
        """
        B, S, L, D = encoded.states.shape
        if self.join == "depth":
            mean = _masked_mean(self.decoder.norm(question.states), question.states_mask)
            return mean[:, None].expand(B, S, D)
        question = self._own(question)
        layout = Layout.of([question.mask])
        if self.question == "alone":
            embeds = self.encoder.embed(layout.pack([question.ids]))
            states = self.encoder.norm(self.encoder.run(embeds, range(self.layers), layout.positions()))
            return _masked_mean(states, layout.mask)[:, None].expand(B, S, D)
        rows = torch.arange(B * S, device=encoded.mask.device) // S
        ids_RQ, mask_RQ = layout.pack([question.ids])[rows], layout.mask[rows]
        mask_RL = encoded.mask.view(B * S, L)
        positions = mask_RL.sum(-1, keepdim=True) + torch.arange(ids_RQ.shape[1], device=ids_RQ.device)
        cache = ReadOnlyCache(
            [(k.reshape(B * S, *k.shape[2:]), v.reshape(B * S, *v.shape[2:])) for k, v in encoded.keys_values]
        )
        states = self.encoder.run(
            self.encoder.embed(ids_RQ), range(self.layers), positions, torch.cat([mask_RL, mask_RQ], 1), cache
        )
        return _masked_mean(self.encoder.norm(states), mask_RQ).view(B, S, D)

    def compared(self, encoded: Encoded) -> Tensor:
        """States on which similarities are taken: after a final norm in both forms. (B, S, L, D)"""
        return encoded.states if self.join == "input" else self.decoder.norm(encoded.states)

    # -------------------------------------------------------------- slots

    def memory(
        self,
        slots: Tensor,
        mask: Tensor,
        last: Tensor,
        encoded: Encoded,
        as_is: Tensor | None = None,
        table: Stack | None = None,
    ) -> Memory:
        """Slots of every row -> the context's memory. A row is a segment (R = B*S) or a whole context (R = B).

        slots  (R, G, D) left-packed, mask (R, G), last (R, G) index in the row of each slot's last token
        as_is  (R, G) bool, slots of one token each that stay what they are: at the input the decoder's embedding of the
               token, which passes no alignment; at depth its state, which the slot holds already
        table  whose embedding that is; default the decoder's
        """
        B = len(encoded.mask)
        R, G, _ = slots.shape
        if self.join == "input":
            slots = self._aligned(slots, None if as_is is None else mask & ~as_is)
            if as_is is not None:
                own = (table or self.decoder).embed(encoded.ids.reshape(R, -1).gather(1, last))
                slots = torch.where(as_is[..., None], own, slots.to(own.dtype))
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

    def _aligned(self, slots: Tensor, chosen: Tensor | None) -> Tensor:
        """Alignment of slots (R, G, D), each after those before it; only those `chosen` (R, G) see one another."""
        if self.is_linear_first:
            slots = self.linear(slots)
        if self.lsa is not None:
            # Left-packed, so plain causal attention never shows a valid slot an empty one.
            packed = None if chosen is None else Layout.of([chosen], round_to=1)
            states = slots if packed is None else packed.pack([slots])
            positions = torch.arange(states.shape[1], device=slots.device).expand(states.shape[:2])
            states = self.lsa.norm(self.lsa.run(states, range(len(self.lsa)), positions))
            slots = states if packed is None else packed.unpack(states, 0)
        return slots if self.linear is None or self.is_linear_first else self.linear(slots)


def _masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D), (B, N) -> (B, D) in float32."""
    weights = mask[..., None].float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
