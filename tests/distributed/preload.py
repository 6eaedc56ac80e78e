"""Imported by the fork server before it forks a rank: what every rank would otherwise import and compute again."""

import gc
from importlib import import_module

import torch

from tests.tiny import compose_tiny

for name in (
    "train",
    "eval",
    "comi.model",
    "comet.model",
    "ram.model",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "torch.distributed.algorithms.ddp_comm_hooks",
    "deepspeed",
    # imported by every engine, slowly
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.moe.ep_experts",
    "deepspeed.ops.triton_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
):
    import_module(name)

torch.set_num_threads(1)
compose_tiny(["compressor=comet"])  # Hydra builds its grammar once
# A garbage collection in a rank would visit, and so copy, every page that the rank shares with the server.
gc.collect()
gc.freeze()
