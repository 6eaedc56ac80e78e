"""Tiny checkpoints with the names that the authors' code writes, and reference computations of the published forms.

The modules are those of transformers and peft. The computations call them on one unpadded example and use no code of
this framework.

Shape letters: T context tokens, Q question tokens, A answer tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from breviary.backbones.tiny import TinyBackbone, tiny_tokenizer
from tests.tiny import disturb

WIDTH, LAYERS = 64, 4


def plain_model(family, tied=True, layers=LAYERS, width=WIDTH):
    """A causal model with random weights."""
    config = copy.deepcopy(TinyBackbone(family=family, layers=layers, width=width).config)
    config.tie_word_embeddings, config.initializer_range = tied, 0.15
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    disturb(model, scale=0.03)  # otherwise norms are 1 and biases 0
    return model


def save_backbone(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def first_layers(model, number, seed):
    """A model with the first layers and the final norm of the full model, all weights changed as if trained."""
    part = copy.deepcopy(model)
    del part.model.layers[number:]
    disturb(part, scale=0.03, seed=seed)
    return part


def state_of(module):
    """The state dict as the released code saves it: every tensor is a copy, tied weights are stored twice."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


@dataclass
class Computed:
    """Results of a published form on one example: states (T, D), memory (M, D), logits (A, V), losses by name."""

    states: torch.Tensor
    memory: torch.Tensor
    logits: torch.Tensor
    losses: dict[str, torch.Tensor] = field(default_factory=dict)


def cosine(a, b):
    return nn.functional.cosine_similarity(a, b, dim=-1)


def answer_logits(model, memory, prompt, answer):
    """Logits (A, V) on the answer of a causal model with input [memory ; prompt ; answer], and the mean loss."""
    embeds = torch.cat([memory, model.get_input_embeddings()(torch.cat([prompt, answer]))])
    logits = model(inputs_embeds=embeds[None]).logits[0, -len(answer) - 1 : -1]
    return logits, nn.functional.cross_entropy(logits, answer)


# ------------------------------------------------------------------ COMI


class PublishedCOMI(nn.Module):
    """Modules with the released names; `encoder` is named icae in older files."""

    def __init__(self, model, lora=True, encoder="encoder", scalars=(1.0, 1.0, 1.0, 1.0), lora_alpha=8):
        super().__init__()
        self.decoder = copy.deepcopy(model)
        if lora:
            config = LoraConfig(r=4, lora_alpha=lora_alpha, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
            self.decoder = get_peft_model(self.decoder, config)
            disturb(self.decoder, scale=0.1, seed=3)
        else:
            self.decoder.requires_grad_(False)
            for name, weight in self.decoder.named_parameters():
                weight.requires_grad_("self_attn" in name and name.endswith("proj.weight"))
            disturb(self.decoder, seed=3)
        setattr(self, encoder, first_layers(model, 2, seed=4))
        self.memory_fusion_layer = first_layers(model, 1, seed=5)
        self.semantic_alignment_layer = nn.Linear(WIDTH, WIDTH)
        names = ("alpha_select", "beta_select", "alpha_merge", "beta_merge")
        for name, value in zip(names, scalars):
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        self.encoder_modules = [getattr(self, encoder)]  # in a list, so that it is registered once
        self.eval()

    @torch.no_grad()
    def compute(self, context, query, prompt, answer, ratio, segment_size):
        """Spec A1 to A5, segment by segment."""
        all_states, memory = [], []
        for piece in context.split(segment_size):
            states = self.encoder_modules[0].model(torch.cat([piece, query])[None]).last_hidden_state[0]
            own, q = states[: len(piece)], states[len(piece) :].mean(0)
            merged = self.merged(own, q, self.sizes(own, q, ratio))
            memory.append(self.memory_fusion_layer.model(inputs_embeds=merged[None]).last_hidden_state[0])
            all_states.append(own)
        logits, loss = answer_logits(self.decoder, torch.cat(memory), prompt, answer)
        return Computed(torch.cat(all_states), torch.cat(memory), logits, {"answer": loss})

    def sizes(self, states, q, ratio):
        """Coarse stage: number of tokens of each group (A3)."""
        groups = states.split(ratio)
        if len(groups) == 1:
            return [len(states)]
        relevance = [cosine(group, q) for group in groups]
        chosen = torch.stack([group[r.argmax()] for group, r in zip(groups, relevance)])
        similarity = cosine(chosen[:, None], chosen[None]).fill_diagonal_(-torch.inf)
        gain = self.alpha_select * torch.stack([r.max() for r in relevance]) - self.beta_select * similarity.amax(1)
        quotas = len(states) * torch.softmax(-gain, 0)
        sizes = quotas.floor().long()
        order = (quotas - sizes).argsort(descending=True)
        sizes[order[: len(states) - int(sizes.sum())]] += 1
        return [size for size in sizes.tolist() if size]

    def merged(self, states, q, sizes):
        """Fine stage: one vector per group (A4). Columns that pad a group to the longest one have similarity 0 (E2)."""
        vectors = []
        for group in states.split(sizes):
            similarity = cosine(group[:, None], group[None]).fill_diagonal_(-torch.inf).amax(1)
            similarity = torch.where(similarity == -torch.inf, 0, similarity)
            if len(group) < max(sizes):
                similarity = similarity.clamp(min=0)
            gain = self.alpha_merge * cosine(group, q) - self.beta_merge * similarity
            vectors.append(torch.softmax(gain, 0) @ group)
        return torch.stack(vectors)


# ------------------------------------------------------------------ RAM


def round_frequencies(model):
    """Rotary frequencies as the inference code's cast of the whole model to bfloat16 leaves them."""
    for name, frequencies in dict(model.model.rotary_emb.named_buffers()).items():
        setattr(model.model.rotary_emb, name, frequencies.bfloat16().float())


class PublishedRAM(nn.Module):
    """All modules with the released names, including those that nothing uses. Weights are float32 here."""

    def __init__(self, model):
        super().__init__()
        self.llm = copy.deepcopy(model).requires_grad_(False)
        for name, weight in self.llm.named_parameters():
            weight.requires_grad_(any(f".{p}_proj.weight" in name for p in "qkv"))
        disturb(self.llm, seed=3)
        self.llm_encoder = first_layers(model, 2, seed=4)
        self.memory_fusion_layer = first_layers(model, 1, seed=5)
        self.semantic_alignment_layer = nn.Linear(WIDTH, WIDTH)
        for name in ("alpha_merge", "alpha_select", "beta_merge", "beta_select"):
            self.register_parameter(name, nn.Parameter(torch.tensor(1.0)))
        self.adaptive_temperature = nn.Parameter(torch.ones(1))
        for stack in (self.llm, self.llm_encoder):
            round_frequencies(stack)
        self.eval()

    def encode(self, ids):
        return self.llm_encoder.model(ids[None]).last_hidden_state[0]

    @torch.no_grad()
    def compute(self, context, query, prompt, answer, ratio, segment_size, positives):
        """Spec 1.2 to 1.9 as in the inference code; positives = indices of the segments that contain the answer."""
        pieces = context.split(segment_size)
        states, q = [self.encode(piece) for piece in pieces], self.encode(query).mean(0)
        scores = torch.stack([cosine(own.mean(0), q) for own in states])
        selected = set(scores.topk(int(len(pieces) / ratio)).indices.tolist())
        memory = []
        for number, (piece, own) in enumerate(zip(pieces, states)):
            skimmed = torch.softmax(cosine(own, q), 0) @ own
            memory.append(
                self.llm_encoder.get_input_embeddings()(piece)
                if number in selected
                else self.semantic_alignment_layer(skimmed)[None]
            )
        logits, loss = answer_logits(self.llm, torch.cat(memory), prompt, answer)
        mass = torch.softmax(scores / 0.05, 0)
        return Computed(
            torch.cat(states),
            torch.cat(memory),
            logits,
            {"answer": loss, "contrastive": -mass[list(positives)].sum().log()},
        )


# ------------------------------------------------------------------ CoMeT


class Adapter(nn.Module):
    """x + U(D x)."""

    def __init__(self):
        super().__init__()
        self.down_proj, self.up_proj = nn.Linear(WIDTH, 8, bias=False), nn.Linear(8, WIDTH, bias=False)

    def forward(self, x):
        return x + self.up_proj(self.down_proj(x))


class GlobalMemory(nn.Module):
    """The gated slots of a layer. Its norm uses the default eps."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.g_proj = nn.Linear(2 * WIDTH, 1, bias=False)
        self.o_proj = Adapter()

    def forward(self, readouts, state):
        candidate = self.norm(readouts)
        if state is None:
            return candidate
        gate = torch.sigmoid(self.g_proj(torch.cat([candidate, state], -1)))
        return gate * state + (1 - gate) * candidate


class CometLayer(nn.Module):
    """A decoder layer with its memory modules."""

    def __init__(self, layer):
        super().__init__()
        self.inner_layer = layer
        self.global_memory_net = GlobalMemory()
        self.temp_memory_net = nn.Sequential(nn.RMSNorm(WIDTH, eps=1e-12), Adapter())


class PublishedCoMeT(nn.Module):
    """A Qwen3 model with memory. The rows of the new tokens are at the end of the embedding matrix.

    The first two new tokens use rows of the backbone that no token has, as in the release.
    """

    SIZES = {"chunk_size": 16, "temp_beacon_stride": 4, "temp_mem_budget": 8}
    SPARE, NEW = 2, 6  # rows of new tokens within the backbone's vocabulary, and beyond it (with padding)

    def __init__(self, model):
        super().__init__()
        old = model.config.vocab_size
        whole = copy.deepcopy(model)
        torch.manual_seed(7)
        whole.resize_token_embeddings(old + self.NEW, mean_resizing=False)
        disturb(whole, scale=0.03, seed=8)
        whole.model.layers = nn.ModuleList(CometLayer(layer) for layer in whole.model.layers)
        disturb(whole.model.layers, scale=0.1, seed=9)
        self.model, self.lm_head = whole.model, whole.lm_head
        self.placeholder, self.beacon, *self.readouts = range(old - self.SPARE, old - self.SPARE + 5)
        self.hf_config = whole.config
        self.eval()

    def config(self):
        """The content of config.json."""
        return {
            **self.hf_config.to_diff_dict(),
            "placeholder_id": self.placeholder,
            "temp_beacon_id": self.beacon,
            "global_beacon_ids": self.readouts,
            **self.SIZES,
        }

    def save(self, folder, tied_once=False):
        """Writes the released folder. tied_once = store a tied head once, as save_pretrained does."""
        folder.mkdir()
        state = state_of(self)
        if tied_once:
            del state["lm_head.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config()))
        return folder

    @torch.no_grad()
    def compute(self, ids, answer):
        """Results for one text (N,) whose last `answer` tokens are supervised.

        states are those of the text tokens after the final norm, (N, D); memory is [S ; Q] of every layer after the
        last complete chunk, (layers * slots, D).
        """
        labels = torch.full_like(ids, -100)
        labels[-answer - 1 : -1] = ids[-answer:]  # shifted before anything is inserted
        memories = [(None, torch.zeros(0, WIDTH)) for _ in self.model.layers]
        rows = []
        chunks = ids.split(self.SIZES["chunk_size"])
        for number, chunk in enumerate(chunks):
            states, after = self.chunk(chunk, memories)
            rows.append(states)
            memories = after if number + 1 < len(chunks) else memories
        states, supervised = self.model.norm(torch.cat(rows)), labels != -100
        logits = self.lm_head(states[supervised])
        memory = torch.cat([torch.cat(pair) for pair in memories])
        return Computed(states, memory, logits, {"answer": nn.functional.cross_entropy(logits, labels[supervised])})

    def chunk(self, text, memories):
        """One chunk in the training layout: states of its text, memory of every layer after it (spec 1.2 to 1.4)."""
        ids, is_text = [], []
        for group in text.split(self.SIZES["temp_beacon_stride"]):
            ids += [*group.tolist(), self.beacon]
            is_text += [True] * len(group) + [False]
        beacons = [position for position, text in enumerate(is_text) if not text]
        ids, is_text = ids + self.readouts, torch.tensor(is_text + [False] * len(self.readouts))
        G = 0 if memories[0][0] is None else len(self.readouts)
        memory_slots = G + len(memories[0][1])
        x = self.model.embed_tokens(torch.tensor([self.placeholder] * memory_slots + ids))[None]
        N = x.shape[1]
        positions = torch.arange(N)[None]
        causal = torch.full((N, N), torch.finfo(x.dtype).min).triu(1)[None, None]
        after = []
        for layer, (state, queue) in zip(self.model.layers, memories):
            if state is not None:
                x[0, :G], x[0, G:memory_slots] = layer.global_memory_net.o_proj(state), queue
            x = layer.inner_layer(
                x,
                attention_mask=causal,
                position_ids=positions,
                use_cache=False,
                position_embeddings=self.model.rotary_emb(x, positions),
            )
            own = x[0, memory_slots:]
            new = layer.temp_memory_net(own[beacons])
            after.append(
                (
                    layer.global_memory_net(own[-len(self.readouts) :], state),
                    torch.cat([queue, new])[-self.SIZES["temp_mem_budget"] :],
                )
            )
        return own[is_text], after
