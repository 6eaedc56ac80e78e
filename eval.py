"""Evaluates a trained run or a baseline: python eval.py run=outputs/NAME/RUN [dataset=nq] [key=value ...]

Reads top to bottom: settle what is asked -> check -> per reader: data, build, answer, score -> one table.
"""

from __future__ import annotations

from breviary.runtime import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_for_people, which tells them in a sentence

import hydra
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from breviary.build import build_backbone, build_reader, compressor_class, compressor_settings
from breviary.checkpoint import load_trained, read_metadata
from breviary.checks import Problems, config_problems, flat_keys, longest_others, process_problems, run_for_people
from breviary.contract import Generation
from breviary.distributed import rank, start_process_group, world_size
from breviary.evaluation import evaluate
from breviary.results import Predictions, merge_ranks, read_results, summarise, write_results
from breviary.runs import best_checkpoint, config_hash, last_checkpoint, load_config
from breviary.runtime import peak_memory_bytes, resolve_device
from breviary.tables import print_table, row, write_table
from data.collate import Collator
from data.metrics import scores
from data.prompts import Prompt
from data.tokenised import Tokenised, tokenise_split

ROOT = Path(__file__).resolve().parent
ASKED = ("run", "checkpoint", "split", "examples", "compare", "baselines")  # keys of eval.yaml that are not a run's


def settle(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The run's own configuration with what the command line says changed in it, and eval.yaml's own keys."""
    if cfg.run is None:
        return cfg
    settled = load_config(cfg.run)
    with open_dict(settled):
        for override in overrides:
            key = override.lstrip("+~").split("=", 1)[0]
            if key.split(".")[0] in settled:
                OmegaConf.update(settled, key, OmegaConf.select(cfg, key), merge=False)
        for key in ASKED:
            settled[key] = cfg[key]
        settled.paths = cfg.paths
    return settled


def untouched(cfg: DictConfig, name: str) -> DictConfig:
    """The same question put to the plain backbone with compressor NAME."""
    other = cfg.copy()
    with open_dict(other):
        other.compressor = OmegaConf.load(ROOT / "configs" / "compressor" / f"{name}.yaml")
        other.decoder.train, other.reader, other.run = "frozen", name, None
    return other


def tokenised(cfg: DictConfig, backbone: Any, examples: list[Any]) -> Tokenised:
    """The examples as tokens; contexts that do not fit beside question and answer are cut, and counted."""
    tokenizer, prompt, cache = backbone.tokenizer(), Prompt(**cfg.prompt), str(Path(cfg.paths.cache) / "tokenised")
    items = tokenise_split(examples, tokenizer, prompt, cfg.limits.max_context_tokens, cache, cfg.limits.truncation)
    others = longest_others(items) + cfg.generation.max_new_tokens
    positions = backbone.config.max_position_embeddings
    limit = compressor_class(cfg).longest_context(compressor_settings(cfg), positions, others)
    if limit is None or max(items.lengths) <= limit:
        return items
    if limit < 1:
        raise ValueError(f"question and answer take up to {others} tokens of the backbone's {positions} positions; "
                         "shorten prompt.template, generation.max_new_tokens or compressor.slots")
    return tokenise_split(examples, tokenizer, prompt, limit, cache, "middle")


def evaluate_reader(cfg: DictConfig, examples: list[Any], folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Answers every example with one reader; continues what an earlier, killed call left in `folder`."""
    if (folder / "results.json").is_file():
        say(f"{cfg.reader}: already evaluated, {folder}")
        return read_results(folder)
    backbone = build_backbone(cfg)
    items = tokenised(cfg, backbone, examples)
    say(f"{cfg.reader}: {items.report()}")
    tokenizer = backbone.tokenizer()
    reader = build_reader(cfg, backbone, tokenizer)
    if checkpoint is not None:
        load_trained(checkpoint, reader, backbone.fingerprint)
    predictions = Predictions(folder / ("predictions.jsonl" if world_size() == 1 else f"predictions.rank{rank()}.jsonl"))
    if predictions.done:
        say(f"{cfg.reader}: going on after {len(predictions.done)} predictions")
    for rows in evaluate(reader, items, Collator(tokenizer.pad_token_id or 0), scores, Generation(**cfg.generation),
                         cfg.eval_batch_size, frozenset(predictions.done), rank(), world_size()):
        predictions.append(rows)
        answered, mine = len(predictions.done), -(-len(items) // world_size())
        say(f"  {cfg.reader}: {answered}/{mine} answered", end="\r" if answered < mine else "\n")
    if dist.is_initialized():
        dist.barrier()
    order = [example.id for example in examples]
    if rank() == 0:
        rows = merge_ranks(folder, order)
        extra = {"data_hash": items.data_hash, "peak_memory_bytes": peak_memory_bytes(), "backbone": backbone.description,
                 "run": str(cfg.run or folder), "config": OmegaConf.to_container(cfg, resolve=True) if cfg.run else None}
        write_results(folder, cfg.reader, summarise(rows, reader.asked_ratio), extra)
    if dist.is_initialized():
        dist.barrier()
    return read_results(folder)


def evaluate_all(cfg: DictConfig) -> list[dict[str, Any]]:
    """The asked reader, those to compare with, and the untouched baselines: one table."""
    readers = [cfg, *(settle_other(cfg, run) for run in cfg.compare)]
    trained = {reader.reader for reader in readers if reader.run}
    for name in cfg.baselines:
        other = untouched(cfg, name)
        if name in trained:
            other.reader = f"{name} (untrained)"
        if cfg.run or cfg.reader != name:
            readers.append(other)

    dataset = instantiate(cfg.dataset)
    problems = [p for reader in readers for p in config_problems(reader, build_backbone(reader), 1)]
    problems += dataset.problems([cfg.split])
    checkpoints = {}
    for reader in readers:
        if reader.run:
            checkpoints[reader.run] = {"best": best_checkpoint, "last": last_checkpoint}[cfg.checkpoint](reader.run)
            read_metadata(checkpoints[reader.run])
    if cfg.examples is not None and cfg.examples < 1:
        problems.append(f"examples={cfg.examples}: must be at least 1, or null for all")
    if problems:
        raise Problems(dict.fromkeys(problems))
    examples = dataset.examples(cfg.split)[: cfg.examples]
    problems = process_problems(len(examples), world_size(), "examples")
    if problems:
        raise Problems(problems)

    start_process_group(resolve_device(cfg.backbone.device))
    home = Path(cfg.run) / "eval" if cfg.run else Path(cfg.paths.outputs) / "eval"
    home = home / config_hash(cfg, without=("resume", "paths", "hydra", "compare", "baselines", "train", "init_from"))
    results = []
    for reader in readers:
        results.append(evaluate_reader(reader, examples, home / reader.reader.replace(" ", "_"),
                                       checkpoints.get(reader.run)))
    return results


def settle_other(cfg: DictConfig, run: str) -> DictConfig:
    """Another run's reader on this evaluation's data, generation and limits."""
    other = load_config(run)
    with open_dict(other):
        for key in ("dataset", "generation", "eval_batch_size", "paths", *ASKED):
            other[key] = cfg[key]
        other.run = run
    return other


def say(text: str, end: str = "\n") -> None:
    """Prints on rank 0."""
    if rank() == 0:
        print(text, end=end, flush=True)


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    if cfg.reader is None:
        cfg.reader = HydraConfig.get().runtime.choices["compressor"]
    if cfg.checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint={cfg.checkpoint}: allowed are best, last")
    cfg = settle(cfg, list(HydraConfig.get().overrides.task))
    results = evaluate_all(cfg)
    if rank() == 0:
        rows = [row(result) for result in results]
        folder = Path(results[0]["run"] if cfg.run else Path(cfg.paths.outputs) / "eval")
        write_table(folder / "table.json", rows)
        print_table(rows, title=f"{cfg.split} of {Path(str(cfg.dataset.get('test', '') or cfg.dataset._target_)).parent.name or cfg.dataset._target_}",
                    caption=f"95% bootstrap intervals; NLL in nats a token. "
                            f"Backbone: {results[0]['backbone']}.")


def config_keys() -> list[str]:
    """Every key of the default configuration."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return flat_keys(compose("eval"))


if __name__ == "__main__":
    run_for_people(main, config_keys)
