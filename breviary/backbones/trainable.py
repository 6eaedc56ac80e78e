"""Trained weights of a reader: which ones train, LoRA adapters, and their names in checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from breviary.backbones.sharding import assign_weight, is_partitioned
from breviary.backbones.stack import HALF, Stack, is_norm
from breviary.contract import Reader

TRAIN_MODES = ("lora", "attention", "qkv", "frozen", "full")

TEACHER = "teacher"  # the adapter of a distillation's teacher

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def set_trainable(
    stack: Stack,
    train: str,
    lora_rank: int = 16,
    lora_alpha: float = 32,
    lora_dropout: float = 0.0,
    lora_targets: str | list[str] = "all-linear",
    adapter: str = "default",
) -> None:
    """Sets which weights of a stack are trained, in place, and converts these to float32.

    train  lora       adapters on `lora_targets` of every layer ('all-linear' or projection names)
           attention  q, k, v and o projections
           qkv        q, k and v projections
           frozen     nothing
           full       all weights of the stack
    """
    assert train in TRAIN_MODES, f"train={train!r} is none of {TRAIN_MODES}"
    stack.requires_grad_(train == "full")
    if train == "lora":
        targets = list(LINEAR if lora_targets == "all-linear" else lora_targets)
        config = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets)
        inject_adapters(config, stack.layers, adapter)
        for name, parameter in stack.layers.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif train in ("attention", "qkv"):
        projections = "qkvo" if train == "attention" else "qkv"
        for name, parameter in stack.layers.named_parameters():
            parameter.requires_grad_(any(f"self_attn.{p}_proj." in name for p in projections))
    for parameter in stack.parameters():
        # Updates of 1e-5 are lost in bfloat16 weights. DeepSpeed's bf16 engine keeps its own float32 masters.
        if parameter.requires_grad and parameter.dtype in HALF and not is_partitioned(parameter):
            parameter.data = parameter.data.float()


def inject_adapters(config: LoraConfig, layers: nn.Module, adapter: str) -> None:
    """Adds peft's adapters to every module that `config` names, in place."""
    inject_adapter_in_model(config, layers, adapter_name=adapter)
    for module in layers.modules():
        if isinstance(module, LoraLayer):
            # peft would cast the stream to float32 for the adapters, and autocast back for their product: the same
            # numbers, at the cost of an eighth of a training step.
            module.cast_input_dtype_enabled = False


def freeze_learned(module: nn.Module) -> None:
    """Freezes a module's trained weights, in place, and marks them so that checkpoints still store them.

    They are not the backbone's pretrained weights, so they cannot be loaded from the backbone.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.is_learned = True


@torch.no_grad()
def add_teacher(stack: Stack, weights: Mapping[str, Tensor], rank: int, alpha: float) -> None:
    """Adds a frozen second adapter, with which `teacher_adapters` computes, in place.

    weights  "layers.N.MODULE.lora_A.default.weight" and lora_B, as in a checkpoint, without the decoder's name
    rank, alpha  of that adapter
    """
    trained = [parameter for parameter in stack.parameters() if parameter.requires_grad]
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights})
    inject_adapters(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), stack.layers, TEACHER)
    own = dict(stack.named_parameters())
    for name, tensor in weights.items():
        assign_weight(own[name.replace(".default.", f".{TEACHER}.")], tensor)
    for module in stack.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter("default")
    _train_only(stack, trained)


@contextlib.contextmanager
def teacher_adapters(stack: Stack) -> Iterator[None]:
    """Context manager: the stack computes with the teacher's adapter, without any where there is none.

    Restores adapters and `requires_grad` of all weights on exit. Use it without gradients only: checkpointed layers
    would be recomputed with other adapters.
    """
    adapted = [module for module in stack.modules() if isinstance(module, BaseTunerLayer)]
    trained = [parameter for parameter in stack.parameters() if parameter.requires_grad]
    for module in adapted:
        if TEACHER in getattr(module, "lora_A", {}):
            module.set_adapter(TEACHER)
        else:
            module.enable_adapters(False)
    try:
        yield
    finally:
        for module in adapted:
            module.enable_adapters(True)
            module.set_adapter("default")
        _train_only(stack, trained)


def _train_only(stack: Stack, trained: list[nn.Parameter]) -> None:
    """Sets `requires_grad` of the given weights alone: peft's switches change it."""
    for parameter in stack.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


@torch.no_grad()
def merge_adapters(module: nn.Module) -> None:
    """Merges every LoRA adapter into its base weight and removes it, in place; rounds once, to the weight's dtype."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                base = layer.get_base_layer()
                for adapter in layer.active_adapters:
                    merged = base.weight.float() + layer.get_delta_weight(adapter).float()
                    base.weight.data = merged.to(base.weight.dtype)
                setattr(parent, name, base)


def cast_for_inference(reader: Reader) -> None:
    """Casts trained float32 weights to the decoder's dtype, in place, where that is half precision.

    Autocast would cast them in every call. The numbers are the same, as it rounds the same weights. Norms stay float32,
    and so do modules that set `is_float32`: they compute in float32 in training too. For loaded readers that are not
    trained: small updates would be lost.
    """
    dtype = reader.decoder.dtype
    if dtype not in HALF:
        return
    reader.weights_hash = reader.hash_weights()  # files name the weights as stored
    kept = {
        parameter
        for module in reader.modules()
        if getattr(module, "is_float32", False) or is_norm(module)
        for parameter in module.parameters()
    }
    for parameter in reader.parameters():
        if parameter.dtype == torch.float32 and parameter not in kept:
            parameter.data = parameter.data.to(dtype)
    for module in reader.modules():
        if isinstance(module, Stack):
            module.is_cast = True


def learned_parameters(reader: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of all weights that a checkpoint stores: those that training has changed or will change."""
    return {
        name: parameter
        for name, parameter in reader.named_parameters()
        if parameter.requires_grad or getattr(parameter, "is_learned", False)
    }


def trained_state(reader: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """{name: float32 CPU tensor} of the learned weights; values from `state`, a gathered state dict, if given."""
    names = list(learned_parameters(reader))
    state = dict(reader.named_parameters()) if state is None else state
    return {name: state[name].detach().to("cpu", torch.float32).contiguous() for name in names}


def former_names(reader: nn.Module) -> dict[str, str]:
    """{former name: current name} of parameters and modules, from the `former_names` attributes of the modules."""
    return {
        f"{at}.{old}": f"{at}.{new}"
        for at, module in reader.named_modules()
        for old, new in getattr(module, "former_names", {}).items()
    }


def rename_parameter(name: str, names: dict[str, str]) -> str:
    """The current name of a parameter, where `names` lists it or a module that contains it; else `name`."""
    for old, new in names.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
