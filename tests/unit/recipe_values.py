"""Hyperparameters of the published recipes, as the method specifications state them, by experiment.

A recipe is {key: value} of the composed configuration; a comment names the place: COMI A1 to A7, GMSA B1 to B4 and ICAE
C1 of the specification of COMI and autoencoders, RAM 1.1 to 3, CoMeT 1.1 to 4.1 of theirs.
"""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

QWEN2, LLAMA2 = "Qwen/Qwen2-7B-Instruct", "meta-llama/Llama-2-7b-chat-hf"
QWEN3, LLAMA31 = "Qwen/Qwen3-4B-Instruct-2507", "meta-llama/Llama-3.1-8B-Instruct"
DATASETS = ("nq", "2wikimultihopqa", "hotpotqa", "narrativeqa", "multinews")
RESTATE = "Restate the aforementioned Text."  # GMSA B2

COMI: Values = {
    "compressor._target_": "comi.model.COMI",
    "compressor.ratio": 16,  # A7: r in training; A8: evaluated at 16 and 32
    "compressor.ratio_choices": None,  # A7: random from 16 and 32 is off
    "compressor.join": "input",  # A1.7: memory before the decoder's input embeddings
    "compressor.encoder_layers": 8,  # A1.2
    "compressor.encoder_train": "full",  # A6
    "compressor.alignment": "lsa",  # A1.6
    "compressor.lsa_layers": 1,  # A1.6
    "compressor.lsa_init": "pretrained",  # A1.6: the decoder's first block
    "compressor.final_norm": "pretrained",  # A1.2
    "compressor.question": "after_context",  # A1.1: [context ; query]
    "compressor.coarse": True,  # A3
    "compressor.fine": True,  # A4
    "compressor.redundancy_coarse": True,  # A2
    "compressor.redundancy_fine": True,  # A2
    "compressor.alpha": 1.0,  # A2
    "compressor.beta": 1.0,  # A2
    "compressor.temperature": 1.0,  # A3: no temperature
    "compressor.min_group_size": 0,  # A3: groups of no token are dropped
    "compressor.learned_weights": "none",  # A10: lamda_* off
    "decoder.train": "attention",  # A6: q, k, v, o in full (paper)
    "prompt.bos": False,  # A1.1
    "prompt.instruction": "",  # A1.7
    "prompt.template": "{question}",  # A1.7: [memory ; query ; answer], no separators
    "prompt.answer_template": "{answer}",  # A1.7
    "prompt.chat": False,  # A1.1
    "train.steps": 10000,  # A7
    "train.save_every": 2000,  # A7
    "train.eval_every": 1000,  # A7
    "train.batch_size": 1,  # A7: a device
    "train.accumulation": 1,  # A7
    "train.optimizer": "adamw",  # A7
    "train.learning_rate": 1e-5,  # A7
    "train.schedule": "cosine",  # A7
    "train.warmup": 0.1,  # A7
    "train.weight_decay": 0.01,  # A7
    "train.max_grad_norm": 1.0,  # A7
    "backbone.dtype": "bfloat16",  # A7
    "engine.deepspeed.zero_optimization.stage": 2,  # A7
    "engine.deepspeed.zero_optimization.overlap_comm": False,  # A7
    "generation.temperature": 0.0,  # A7: greedy
    "generation.repetition_penalty": 1.3,  # A7
    "seed": 42,  # A7
}
RAM: Values = {
    "compressor._target_": "ram.model.RAM",
    "compressor.ratio": 4,  # 1.5: evaluated at .25 and .125
    "compressor.uniform_keep": True,  # 1.10
    "compressor.budget": "nominal",  # 1.5
    "compressor.segment_size": 50,  # 1.2
    "compressor.read": "segments",  # 1.3
    "compressor.keep": "topk",  # 1.5
    "compressor.relevance": "cosine",  # 1.4
    "compressor.skim": "query_weighted",  # 1.6
    "compressor.skim_temperature": 1.0,  # 1.6: none
    "compressor.contrastive_weight": 1.0,  # 1.9: lambda
    "compressor.contrastive_temperature": 0.05,  # 1.9: v1
    "compressor.join": "input",  # 1.8
    "compressor.encoder_layers": 8,  # 1.3
    "compressor.encoder_train": "full",  # 1.3
    "compressor.final_norm": "pretrained",  # 1.3
    "compressor.alignment": "linear",  # 1.7: v1
    "compressor.question": "alone",  # 1.3: a separate row
    "decoder.train": "qkv",  # 1.3: v1
    "dataset.passage_format": "plain",  # 1.1: title, space, text, joined by line breaks
    "prompt.bos": False,  # 1.1
    "prompt.instruction": "",  # 1.1: instruction_name=empty
    "prompt.template": "Question:{question}\nAnswer:",  # 1.1
    "prompt.answer_template": "{answer}",  # 1.1
    "prompt.chat": False,  # 1.1
    "limits.max_context_tokens": None,  # 1.1: inference cuts nothing
    "train.steps": 100000,  # 3: at most
    "train.save_every": 10000,  # 3
    "train.batch_size": 1,  # 3
    "train.accumulation": 1,  # 3
    "train.optimizer": "adamw",  # 3
    "train.learning_rate": 1e-4,  # 3
    "train.schedule": "linear",  # 3
    "train.max_grad_norm": 2.0,  # 3
    "backbone.dtype": "bfloat16",  # 3
    "engine.deepspeed.zero_optimization.stage": 2,  # 3
    "generation.temperature": 0.0,  # 2: greedy
    "seed": 42,  # 3
}
RAM_TRAINING_CODE = RAM | {
    "compressor.uniform_keep": False,  # 1.10: fixed .25
    "compressor.segment_size": 16,  # 1.2
    "compressor.contrastive_temperature": 0.1,  # 1.9
    "compressor.positives": "answers",  # 1.9
    "compressor.alignment": "transformer_linear",  # 1.7
    "compressor.lsa_layers": 1,  # 1.7
    "decoder.train": "full",  # 1.3
    "limits.max_context_tokens": 28000,  # 1.1
    "limits.truncation": "head",  # 1.1
    "train.steps": 10000,  # 3
    "train.save_every": "15m",  # not stated
    "train.learning_rate": 1e-5,  # 3
    "train.schedule": "cosine",  # 3
    "train.warmup": 0.1,  # 3
    "train.weight_decay": 0.01,  # 3
    "train.max_grad_norm": 1.0,  # 3
    "train.gradient_checkpointing": True,  # 3
    "engine.deepspeed.zero_optimization.offload_optimizer.device": "cpu",  # 3
    "generation.min_new_tokens": 1,  # 2
    "generation.max_new_tokens": 100,  # 2
}
RAM_MAX_NEW = {"nq": 100, "hotpotqa": 32, "2wikimultihopqa": 100, "narrativeqa": 128, "multinews": 512}  # 2

GMSA_1: Values = {
    "compressor._target_": "breviary.readers.mean_pool.MeanPool",
    "compressor.ratio": 16,  # B2: code
    "compressor.ratio_choices": None,  # B2: off
    "compressor.encoder_layers": 8,  # B1
    "compressor.encoder_train": "lora",  # B1
    "compressor.encoder_lora_rank": 128,  # B4
    "compressor.encoder_lora_alpha": 32,  # B4
    "compressor.encoder_lora_dropout": 0.05,  # B4
    "compressor.alignment": "lsa",  # B1
    "compressor.lsa_layers": 1,  # B1
    "compressor.frozen": False,  # B2
    "decoder.train": "frozen",  # B2
    "objective._target_": "breviary.objectives.text.Reconstruct",  # B2
    "dataset.question": RESTATE,  # B2
    "prompt.bos": False,  # B2: [memory ; instruction ; text]
    "prompt.template": "{question}",  # B2
    "prompt.answer_template": "{answer}",  # B2
    "limits.max_context_tokens": 280000,  # B4
    "train.steps": 5000,  # B4
    "train.batch_size": 1,  # B4: on 2 GPUs
    "train.learning_rate": 1e-4,  # B4
    "train.schedule": "cosine",  # B4
    "train.warmup": 0.1,  # B4
    "train.weight_decay": 0.01,  # B4
    "backbone.dtype": "bfloat16",  # B4
}
GMSA_2: Values = {key: value for key, value in GMSA_1.items() if key.startswith(("compressor.", "prompt."))} | {
    "compressor.frozen": True,  # B3
    "decoder.train": "full",  # B3: second version and code
    "objective._target_": "breviary.objectives.answer.Answer",  # B3
    "limits.max_context_tokens": 280000,  # B4
    "train.steps": 10000,  # B4
    "train.learning_rate": 1e-5,  # B4
    "train.schedule": "cosine",  # B4
}
GMSA_1_PAPER = GMSA_1 | {
    "compressor.ratio": 16,
    "compressor.ratio_choices": [4, 8],  # B2: first version
    "compressor.ratio_draw": "sample",  # B2: per sample
    "train.batch_size": 2,  # B4: 4 on 2 GPUs
    "train.schedule": "linear",  # B4
    "train.warmup": 0.0,  # not stated
    "train.max_grad_norm": 2.0,  # B4
}
GMSA_2_PAPER = GMSA_2 | {
    "compressor.ratio": 4,
    "decoder.train": "qkv",  # B3: first version
    "train.batch_size": 2,  # B4: 16 = 2 GPUs x 2 x 4
    "train.accumulation": 4,
    "train.schedule": "linear",  # B4
    "train.max_grad_norm": 2.0,  # B4
}
GMSA_DATA = {
    "pwc": ({"limits.max_context_tokens": 512}, 10000, 5000),  # B4: longest text, steps of both stages
    "qa": ({"limits.max_context_tokens": 3072}, 20000, 1000),  # B4
}
QA_MIX: Values = {
    "dataset.weights": {"nq": 1, "2wikimultihopqa": 1, "hotpotqa": 1},
    "dataset.train_size": 45000,  # B4: 15,000 samples each
}
ICAE: Values = {
    "compressor._target_": "breviary.readers.memory_tokens.MemoryTokens",
    "compressor.memory_tokens": 128,  # C1
    "compressor.ratio": 4,  # C1: segments of 4 k tokens
    "compressor.count": "fixed",  # C1
    "compressor.task_tokens": True,  # C1: [AE], [LM], [FT]
    "compressor.head": "none",  # C1
    "compressor.encoder_layers": None,  # C1: the whole model
    "compressor.lora_rank": 128,  # C1
    "compressor.lora_alpha": 32,  # C1
    "compressor.lora_dropout": 0.05,  # C1
    "compressor.lora_targets": ["q_proj", "v_proj"],  # C1
    "decoder.train": "frozen",  # C1
    "backbone.path": LLAMA2,
}
COMET: Values = {
    "compressor._target_": "comet.model.Comet",
    "compressor.chunk_size": 2048,  # 4.1
    "compressor.stride": 8,  # 4.1
    "compressor.global_slots": 512,  # 4.1
    "compressor.queue_budget": 2048,  # 4.1
    "compressor.adapter_rank": 8,  # 4.1
    "compressor.adapter_init": "normal",  # 1.6
    "compressor.gate": True,  # 1.4
    "compressor.gate_bias": 0.0,  # 1.6
    "compressor.strategy": "mixture",  # 3.3
    "compressor.most_chunks": 16,  # 3.3
    "compressor.smallest_chunk": 4,  # 3.3
    "compressor.widest_stride": None,  # 3.3: off
    "compressor.supervise": "answer",  # 1.7: assistant tokens
    "compressor.truncate_every": None,  # 1.4: no detach
    "compressor.memory_rate": 5.0,  # 1.7: 2.5e-4
    "decoder.train": "full",  # 1.7
    "backbone.path": QWEN3,  # 4.1
    "backbone.dtype": "bfloat16",  # 4.1
    "train.batch_size": 1,  # 4.1
    "train.optimizer": "adamw",  # 4.1
    "train.learning_rate": 5e-5,  # 4.1
    "train.schedule": "cosine",  # 4.1
    "train.weight_decay": 0.0,  # 4.1
    "train.max_grad_norm": 1.5,  # 4.1
    "train.gradient_checkpointing": True,  # 4.1
    "generation.temperature": 0.0,  # 4.1
    "seed": 42,  # 4.1
}


def _comi(dataset: str, backbone: str) -> Values:
    own: Values = {"backbone.path": {"qwen2_7b": QWEN2, "llama2_7b": LLAMA2}[backbone]}
    own["compressor.segment_size"] = 30000 if backbone == "qwen2_7b" else 3500  # A5: train.sh; ours: 4,096 positions
    own["generation.max_new_tokens"] = 512 if dataset == "multinews" else 20  # A7; E17: useless for Multi-News
    return COMI | own


def _ram(dataset: str, backbone: str) -> Values:
    own: Values = {"backbone.path": {"qwen3_4b": QWEN3, "llama31_8b": LLAMA31}[backbone]}
    if dataset == "narrativeqa":  # whole stories are longer than the declared limit
        own |= {"limits.max_context_tokens": 32768, "dataset.passage_format": "numbered"}  # of stories: no passages
    return RAM | own | {"generation.max_new_tokens": RAM_MAX_NEW[dataset]}


RECIPES: dict[str, Values] = {
    **{f"comi_paper/{d}_{b}": _comi(d, b) for d in DATASETS for b in ("qwen2_7b", "llama2_7b")},
    **{f"ram_paper/{d}_{b}": _ram(d, b) for d in DATASETS for b in ("qwen3_4b", "llama31_8b")},
    "ram_paper/training_code_qwen3_4b": RAM_TRAINING_CODE | {"backbone.path": QWEN3},
    "ram_paper/training_code_llama31_8b": RAM_TRAINING_CODE | {"backbone.path": LLAMA31},
    "gmsa_paper/stage1_script_qwen3_4b": GMSA_1 | QA_MIX | {"backbone.path": QWEN3},
    "gmsa_paper/stage1_script_llama32_3b": GMSA_1 | QA_MIX,
    "gmsa_paper/stage2_script_qwen3_4b": GMSA_2 | {"backbone.path": QWEN3},
    "gmsa_paper/stage2_script_llama32_3b": GMSA_2,
    **{
        f"gmsa_paper/stage{stage}_{data}_{backbone}": values
        | limit
        | {"train.steps": steps[stage - 1]}
        | (QA_MIX if data == "qa" else {})
        for data, (limit, *steps) in GMSA_DATA.items()
        for backbone in ("llama2_7b", "qwen25_7b")
        for stage, values in ((1, GMSA_1_PAPER), (2, GMSA_2_PAPER))
    },
    "icae_paper/pretrain_llama2_7b": ICAE
    | {
        "objective.continuation_weight": 1.0,  # C1: half of the texts
        "objective.continuation_hint": 8,  # C1
        "objective.continuation_above": 64,  # C1
        "prompt.bos": False,  # C1
        "prompt.template": "",  # C1: [memory][AE] text
    },
    "icae_paper/pwc_llama2_7b": ICAE
    | {
        "limits.max_context_tokens": 5120,  # the authors' instruct_ft_tokenize_function
        "limits.truncation": "head",
        "prompt.bos": True,
        "prompt.instruction": "[INST]",
        "prompt.template": "{question}[/INST]",
        "prompt.answer_template": "{answer}",
    },
    "comet_scrolls": COMET
    | {
        "train.epochs": 3.0,  # 4.1
        "train.pack_tokens": 32768,  # 3.2
        "train.save_every": 200,  # 4.1
        "limits.truncation": "head",  # 3.2: truncated right
        "prompt.chat": True,  # 3.1
        "generation.max_new_tokens": 512,  # 4.1
    },
    "comet_passkey_32k": COMET | {"dataset.context_words": 24000},  # 3.1: trained at 32k
    "comet_128k_pipeline": COMET
    | {"engine.ranks": 16, "train.pack_tokens": 131072, "compressor.most_chunks": 64},  # 4.1: 128k on 16 GPUs
}
