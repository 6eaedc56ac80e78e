"""Names that other tools use for our keys, so that an unknown key is answered with the right one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# Right key: its other names, in lower case with underscores.
NAMES = {
    "train.learning_rate": "lr max_lr peak_lr base_lr learning_rate",
    "train.batch_size": "bs batch batch_size train_batch_size per_device_train_batch_size micro_batch_size mbs",
    "train.global_batch": "global_batch global_batch_size effective_batch_size total_batch_size",
    "train.accumulation": "accumulation accum grad_accum accumulate_grad_batches gradient_accumulation "
    "gradient_accumulation_steps",
    "train.epochs": "epochs epoch n_epochs num_epochs max_epochs num_train_epochs",
    "train.steps": "steps iters iterations max_iters max_steps num_steps train_steps total_steps",
    "train.optimizer": "optimizer optim optimiser",
    "train.schedule": "scheduler lr_scheduler lr_scheduler_type lr_schedule",
    "train.warmup": "warmup warmup_ratio warmup_steps",
    "train.weight_decay": "wd decay weight_decay",
    "train.max_grad_norm": "clip grad_clip clip_grad max_norm gradient_clip_val clip_grad_norm",
    "train.gradient_checkpointing": "checkpointing activation_checkpointing grad_checkpointing grad_ckpt",
    "train.log_every": "log_steps logging_steps log_interval log_every_n_steps",
    "train.eval_every": "eval_steps eval_interval val_every val_check_interval evaluation_steps validate_every",
    "train.save_every": "save_steps save_interval checkpoint_every",
    "train.eval_examples": "val_examples max_eval_samples eval_size",
    "train.workers": "num_workers dataloader_num_workers",
    "train.tracker": "tracker report_to logger trackio",
    "train.wandb": "wandb use_wandb wandb_mode",
    "eval_batch_size": "eval_bs eval_batch val_batch_size per_device_eval_batch_size inference_batch_size",
    "limits.max_context_tokens": "max_length max_len max_seq_len max_seq_length max_context max_context_length "
    "max_tokens context_length context_len context_size context_window seq_len model_max_length max_input_length",
    "limits.truncation": "truncate truncation_side",
    "generation.max_new_tokens": "max_new_tokens max_answer_tokens max_output_tokens max_gen_len",
    "generation.temperature": "sampling_temperature",
    "generation.stop": "stop_strings stop_words stop_sequences",
    "compressor": "method memory model_type",
    "compressor.ratio": "ratio rate compression_ratio compression_rate compress_ratio",
    "compressor.slots": "slots num_slots n_slots mem_size memory_size num_memory_tokens memory_tokens",
    "compressor.segment_size": "chunk chunk_len chunk_length segment_length segment_len",
    "backbone": "model model_name model_name_or_path base_model llm lm backbone_name pretrained pretrained_model",
    "backbone.path": "model_path backbone_path",
    "backbone.dtype": "dtype torch_dtype precision fp16 bf16 half mixed_precision",
    "backbone.device": "device cuda gpu",
    "backbone.attn_implementation": "attn attention attn_impl flash_attention",
    "dataset": "data data_set datasets task corpus dataset_name",
    "dataset.train": "train_file train_data train_path data_path",
    "dataset.validation": "validation_file val_file dev_file val_data",
    "dataset.test": "test_file test_data",
    "decoder.train": "trainable tune finetune",
    "decoder.lora_rank": "lora_r rank lora_dim lora",
    "decoder.lora_alpha": "alpha_lora",
    "decoder.lora_targets": "target_modules lora_target_modules",
    "objective": "loss",
    "engine": "strategy deepspeed zero distributed fsdp fsdp2",
    "experiment": "exp config recipe preset",
    "examples": "limit num_examples n_examples max_examples max_samples num_samples",
    "run": "run_dir run_folder run_path ckpt_path model_dir",
    "checkpoint": "ckpt which_checkpoint",
    "resume": "resume_from resume_from_checkpoint continue_from",
    "init_from": "init load_from pretrained_run initialize_from",
    "paths.outputs": "output out output_dir out_dir outdir outputs save_dir log_dir logdir",
    "paths.cache": "cache cache_dir",
    "paths.data": "data_dir data_root data_folder",
    "name": "run_name exp_name experiment_name",
    "prompt.template": "template prompt_template",
    "prompt.instruction": "system system_prompt instruction",
    "prompt.chat": "chat chat_template apply_chat_template",
}

ALIASES = {alias: key for key, aliases in NAMES.items() for alias in aliases.split()}


def plain_name(name: str) -> str:
    """A name in the spelling of our keys and choices: "Qwen/Qwen3-4B" becomes "qwen3_4b"."""
    return name.rpartition("/")[2].lower().replace("-", "_").replace(".", "_").replace(" ", "_")


def alias_of(key: str) -> str | None:
    """The key that `key` is another name of, whatever section it was written in; None where it is none."""
    return ALIASES.get(plain_name(key.rpartition(".")[2]))


def nearest_choice(name: str, choices: Sequence[str]) -> str | None:
    """The choice of a config group that `name` means: in another spelling, longer, or misspelt; None for none."""
    plain = plain_name(name)
    near = [choice for choice in choices if choice == plain]
    near += sorted((choice for choice in choices if plain.startswith(f"{choice}_")), key=len, reverse=True)
    return next(iter(near + difflib.get_close_matches(plain, choices, n=1)), None)
