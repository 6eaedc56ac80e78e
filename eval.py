"""Evaluates a trained run or a baseline: python eval.py run=outputs/NAME/RUN [dataset=nq] [key=value ...]

Reads top to bottom: settle what is asked -> check -> per reader: data, build, answer, score -> one table.
"""

from __future__ import annotations

from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_cli, which tells them in a sentence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from breviary.config.build import build_backbone, build_reader, compressor_class, compressor_settings
from breviary.config.checks import check_config, check_process_count, read_splits
from breviary.config.errors import ConfigError, collect_errors, report_user_errors, run_cli
from breviary.config.keys import drop_unused_keys, flat_keys, known_keys, suggest, validate_keys
from breviary.config.lengths import check_min_length, generation_notes, max_context_length, max_other_tokens
from breviary.config.trusted import ALL, untrusted_targets
from breviary.contract import Generation, Reader
from breviary.evaluation.loop import evaluate, shuffled_context_nll, unconditional_nll
from breviary.evaluation.results import (
    PREDICTIONS,
    Predictions,
    merge_ranks,
    read_results,
    source_of,
    summarise,
    write_results,
)
from breviary.evaluation.table import print_table, row, write_table
from breviary.memory.budget import FIXED_RATIO
from breviary.readers.cache import EncodingStore
from breviary.runs.checkpoints import best_checkpoint, check_checkpoint, last_checkpoint, load_trained
from breviary.runs.folders import called, config_hash, load_config
from breviary.runtime.device import peak_memory_bytes, resolve_device
from breviary.runtime.distributed import (
    barrier,
    end_process_group,
    rank,
    start_process_group,
    take_launcher_arguments,
    world_size,
)
from data.collate import Collator
from data.metrics import scores
from data.prompts import Prompt
from data.tokenised import Tokenised, tokenise_split

ROOT = Path(__file__).resolve().parent
CHECKPOINTS = {"best": best_checkpoint, "last": last_checkpoint}
NOT_HASHED = (
    "resume",
    "paths",
    "hydra",
    "variants",
    "compare",
    "baselines",
    "train",
    "init_from",
)  # what changes no answer
ASKED = (
    "run",
    "checkpoint",
    "split",
    "examples",
    "variants",
    "compare",
    "baselines",
)  # keys of eval.yaml that are not a run's
VARIED = (
    "compressor",
    "generation",
)  # sections of which a variant may change keys: its weights and data are the reader's


def settle(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The run's own configuration with what the command line says changed in it, and eval.yaml's own keys."""
    if cfg.run is None:
        return cfg
    settled = load_config(cfg.run)
    with open_dict(settled):
        unknown = []
        for override in overrides:
            key = override.lstrip("+~").split("=", 1)[0]
            if key.split(".")[0] in settled:
                OmegaConf.update(settled, key, OmegaConf.select(cfg, key), merge=False)
            elif key not in ASKED:
                unknown.append(f"{key}: no key of a run's configuration{suggest(key, flat_keys(settled))}")
        if unknown:
            raise ConfigError(unknown)
        for key in ASKED:
            settled[key] = cfg[key]
        settled.run = called(cfg.run)
        settled.paths = cfg.paths
    return settled


def from_command_line(cfg: DictConfig, own: tuple[str, ...] = ()) -> DictConfig:
    """What Hydra composed for this command line, settled; `own` keys are the command's alone and are left out."""
    if cfg.reader is None:
        cfg.reader = HydraConfig.get().runtime.choices["compressor"]
    with open_dict(cfg):
        for key in own:
            del cfg[key]
    words = [word for word in HydraConfig.get().overrides.task if word.lstrip("+~").split("=", 1)[0] not in own]
    gone = drop_unused_keys(cfg, words)
    if gone:
        say(f"not used with the chosen compressor or data: {', '.join(gone)}")
    return settle(cfg, words)


def of_one_reader(cfg: DictConfig, instead: str) -> DictConfig:
    """The configuration of a command that measures one reader; raises Problems where it asks for further ones."""
    further = [f"{key}={list(cfg[key])}: {instead}" for key in ("variants", "compare") if cfg[key]]
    if further:
        raise ConfigError(further)
    return cfg


def untouched(cfg: DictConfig, name: str) -> DictConfig:
    """The same question put to the plain backbone with compressor NAME."""
    other = cfg.copy()
    with open_dict(other):
        other.compressor = OmegaConf.load(ROOT / "configs" / "compressor" / f"{name}.yaml")
        other.decoder.train, other.reader, other.run = "frozen", name, None
    return other


def varied(cfg: DictConfig, changes: DictConfig) -> DictConfig:
    """The same reader with other settings, named by what `changes` changes. Raises: ValueError for keys that no variant has."""
    if not OmegaConf.is_dict(changes) or not changes:
        raise ValueError(f"variants: {changes} names no change; each is like {{compressor.ratio: 8}}")
    other, found = cfg.copy(), []
    for key, value in changes.items():
        if key.split(".")[0] not in VARIED or "." not in key:
            found.append(
                f"variants: {key}: a variant changes keys of {' and '.join(VARIED)}, e.g. {{compressor.ratio: 8}}"
            )
        elif key not in flat_keys(cfg):
            found.append(f"variants: {key}: unknown key{suggest(key, flat_keys(cfg))}")
        else:
            OmegaConf.update(other, key, value, merge=False)
    if found:
        raise ConfigError(found)
    other.reader = ", ".join([cfg.reader, *(f"{key.partition('.')[2]}={value}" for key, value in changes.items())])
    return other


def tokenised(cfg: DictConfig, backbone: Any, examples: list[Any]) -> Tokenised:
    """The examples as tokens; contexts that do not fit beside question and answer are cut, and counted."""
    tokenizer, prompt, cache = backbone.tokenizer(), Prompt(**cfg.prompt), str(Path(cfg.paths.cache) / "tokenised")
    items = tokenise_split(examples, tokenizer, prompt, cfg.limits.max_context_tokens, cache, cfg.limits.truncation)
    short = check_min_length(cfg, cfg.split, items)
    if short:
        raise ConfigError(short)
    positions = backbone.config.max_position_embeddings
    settings = compressor_settings(cfg)
    settings |= {key: off for key, off in FIXED_RATIO.items() if key in settings}
    limit = max_context_length(cfg, compressor_class(cfg), settings, positions, items)
    if max(items.lengths) <= limit:
        return items
    if limit < 1:
        others = max_other_tokens(cfg, items, 0)
        raise ValueError(
            f"question and answer take up to {others} tokens of the backbone's {positions} positions; "
            "shorten prompt.template, generation.max_new_tokens or compressor.slots"
        )
    return tokenise_split(examples, tokenizer, prompt, limit, cache, "middle")


def loaded(cfg: DictConfig, backbone: Any, checkpoint: Path | None) -> Reader:
    """The reader with a checkpoint's weights; without one, the untouched backbone's."""
    reader = build_reader(cfg, backbone, backbone.tokenizer())
    if checkpoint is not None:
        load_trained(checkpoint, reader, backbone.fingerprint)
    return reader


def without_memory(
    cfg: DictConfig, backbone: Any, items: Tokenised, known: dict[Any, dict[str, float]]
) -> dict[str, float]:
    """Nats that the untouched backbone spends on what is asked, told nothing of the context; {} where no measure of the
    objective asks for them. `known` keeps them for readers that are asked the same."""
    if cfg.objective.get("measures") is None:
        return {}
    asked = (backbone.fingerprint["sha256"], str(cfg.prompt), str(cfg.objective), tuple(items.lengths))
    if asked not in known:
        other = validate_keys(untouched(cfg, "no_context"))[0]
        known[asked] = unconditional_nll(
            loaded(other, backbone, None), items, Collator(backbone.tokenizer().pad_token_id or 0), cfg.eval_batch_size
        )
    return known[asked]


def reading_of(cfg: DictConfig, checkpoint: Path | None) -> str | None:
    """Equal for readers that read contexts alike, whatever they make of them; None where that is not known."""
    after = getattr(compressor_class(cfg), "compress_only_keys", ())
    if checkpoint is None or not after:
        return None
    reads = cfg.copy()
    reads.compressor = {key: value for key, value in cfg.compressor.items() if key not in after}
    return config_hash(reads, without=(*NOT_HASHED, "reader", "generation"), extra=checkpoint.name)


def checkpoint_of(cfg: DictConfig) -> Path | None:
    """The asked checkpoint of the reader's run; None where it has no run."""
    return CHECKPOINTS[cfg.checkpoint](cfg.run) if cfg.run else None


def evaluate_reader(
    cfg: DictConfig,
    examples: list[Any],
    folder: Path,
    checkpoint: Path | None,
    known: dict[Any, dict[str, float]],
    readings: EncodingStore | None = None,
) -> dict[str, Any]:
    """Answers every example with one reader; continues what an earlier, killed call left in `folder`. `known` as in
    `without_memory`, `readings` as in `evaluate`."""
    if (folder / "results.json").is_file():
        say(f"{cfg.reader}: already evaluated, {folder}")
        return read_results(folder)
    backbone = build_backbone(cfg)
    items = tokenised(cfg, backbone, examples)
    for line in [items.report(), *generation_notes(cfg, items)]:
        say(f"{cfg.reader}: {line}")
    tokenizer = backbone.tokenizer()
    unconditional = without_memory(cfg, backbone, items, known)  # first: two backbones need not lie in memory at once
    reader = loaded(cfg, backbone, checkpoint)
    order = [example.id for example in examples]
    if rank() == 0:
        merge_ranks(folder, order)  # what killed calls left, of however many processes
    barrier()
    done = frozenset(Predictions(folder / PREDICTIONS).done)
    if done:
        say(f"{cfg.reader}: going on after {len(done)} predictions")
    collate = Collator(tokenizer.pad_token_id or 0)
    others = (
        shuffled_context_nll(reader, items, collate, cfg.eval_batch_size)
        if reader.objective.measures is not None
        else {}
    )
    predictions = Predictions(folder / (PREDICTIONS if world_size() == 1 else f"predictions.rank{rank()}.jsonl"))
    for rows in evaluate(
        reader,
        items,
        collate,
        scores,
        Generation(**cfg.generation),
        cfg.eval_batch_size,
        done,
        rank(),
        world_size(),
        unconditional=unconditional,
        others=others,
        readings=readings,
    ):
        predictions.append(rows)
        answered = len(done) + world_size() * len(predictions.done - done)
        say(f"  {cfg.reader}: {min(answered, len(items))}/{len(items)} answered", end="\r")  # the other ranks' guessed
    barrier()
    say(f"  {cfg.reader}: {len(items)}/{len(items)} answered")
    if rank() == 0:
        rows = merge_ranks(folder, order)
        extra = {
            "data_hash": items.data_hash,
            "peak_memory_bytes": peak_memory_bytes(),
            "backbone": backbone.description,
            "run": str(cfg.run or folder),
            "config": OmegaConf.to_container(cfg, resolve=True) if cfg.run else None,
        }
        summary = summarise(rows, reader.requested_ratio)
        if reader.objective.measures is not None:
            extra |= reader.objective.measures.corpus(rows)
        write_results(folder, cfg.reader, summary, extra)
        if summary["contexts_read"] < summary["n"]:
            say(
                f"  {cfg.reader}: {summary['contexts_read']} contexts read for {summary['n']} questions, "
                f"{1 - summary['contexts_read'] / summary['n']:.0%} of the reading saved"
            )
    barrier()
    return read_results(folder)


def asked_readers(cfg: DictConfig, problems: list[str]) -> list[DictConfig]:
    """The asked reader, its variants, those to compare with, and the untouched baselines: the rows of the table."""
    others = [collect_errors(problems, settle_other, cfg, run) for run in cfg.compare]
    variants = [collect_errors(problems, varied, cfg, changes) for changes in cfg.variants]
    readers = [cfg, *(other for other in [*variants, *others] if other is not None)]
    trained = {reader.reader for reader in readers if reader.run}
    known = sorted(file.stem for file in (ROOT / "configs" / "compressor").glob("*.yaml"))
    for name in cfg.baselines:
        if name not in known:
            problems.append(f"baselines: no compressor {name}{suggest(name, known)}; there are: {', '.join(known)}")
            continue
        other = untouched(cfg, name)
        if name in trained:
            other.reader = f"{name} (untrained)"
        if cfg.run or cfg.reader != name:
            readers.append(other)
    return readers


def checked(cfg: DictConfig, problems: list[str]) -> tuple[list[DictConfig], list[Any]]:
    """The readers and the examples; before any weight is loaded, all problems at once, those known already too."""
    if cfg.checkpoint not in CHECKPOINTS:
        problems.append(f"checkpoint={cfg.checkpoint}: allowed are {', '.join(CHECKPOINTS)}")
    if cfg.examples is not None and cfg.examples < 1:
        problems.append(f"examples={cfg.examples}: must be at least 1, or null for all")
    readers = []
    for asked in asked_readers(cfg, problems):
        foreign = list(untrusted_targets(asked, ALL))
        if foreign:
            raise ConfigError([*problems, *foreign])
        reader, found = validate_keys(asked)
        backbone = build_backbone(reader)
        problems += found + check_config(reader, backbone)
        collect_errors(problems, Prompt, **reader.prompt)
        if reader.run:
            find = CHECKPOINTS.get(cfg.checkpoint, last_checkpoint)
            problems += check_checkpoint("run", reader.run, find, backbone)
        readers.append(reader)
    examples = read_splits(readers[0], [cfg.split], problems).get(cfg.split, [])[: cfg.examples]
    if not problems:
        problems += check_process_count(len(examples), world_size(), "examples")
        for reader in readers:
            collect_errors(problems, tokenised, reader, build_backbone(reader), examples)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return readers, examples


def evaluate_all(cfg: DictConfig) -> list[dict[str, Any]]:
    """Every reader's results, from one table's readers on the same examples."""
    cfg, problems = validate_keys(cfg)
    readers, examples = checked(cfg, problems)
    start_process_group(resolve_device(cfg.backbone.device))
    results, known, read = [], {}, (None, None)
    for reader in readers:
        # A run's results lie in its own folder; those of the untouched backbone with the reader asked for.
        owner = reader if reader.run else cfg
        home = Path(owner.run) / "eval" if owner.run else Path(cfg.paths.outputs) / "eval"
        checkpoint = checkpoint_of(reader)
        # A run that trains on has new best and last checkpoints, whose answers are others.
        asked = config_hash(owner, without=NOT_HASHED, extra=checkpoint.name if checkpoint else "")
        folder = home / asked / reader.reader.replace(" ", "_")
        same = reading_of(reader, checkpoint) if cfg.variants else None
        if same != read[0]:  # one reader's readings at a time: they take gigabytes
            read = same, EncodingStore() if same else None
        results.append(evaluate_reader(reader, examples, folder, checkpoint, known, read[1]))
    return results


def settle_other(cfg: DictConfig, run: str) -> DictConfig:
    """Another run's reader on this evaluation's data, generation and limits."""
    other = load_config(run)
    with open_dict(other):
        for key in ("dataset", "generation", "eval_batch_size", "paths", *ASKED):
            other[key] = cfg[key]
        other.run = called(run)
    return other


def say(text: str, end: str = "\n") -> None:
    """Prints on rank 0."""
    if rank() == 0:
        print(text, end=end, flush=True)


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="eval")
@report_user_errors
def main(cfg: DictConfig) -> None:
    cfg = from_command_line(cfg)
    results = evaluate_all(cfg)
    if rank() == 0:
        rows = [row(result) for result in results]
        folder = Path(results[0]["run"] if cfg.run else Path(cfg.paths.outputs) / "eval")
        write_table(folder / "table.json", rows)
        source = source_of(cfg.dataset, cfg.split)
        print_table(
            rows,
            title=f"{rows[0]['n']} questions of the {cfg.split} split of {source}",
            caption=f"95% bootstrap intervals; NLL in nats a token. Backbone: {results[0]['backbone']}.",
        )
    end_process_group()


def config_keys() -> list[str]:
    """Every key that the command line could have meant."""
    return known_keys("eval")


if __name__ == "__main__":
    take_launcher_arguments()
    run_cli(main, config_keys)
