"""Opens a run folder, an exported folder or an export on the hub: `breviary.load_reader`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from breviary.backbones.fetching import cache_folder
from breviary.backbones.hub import hub_options, hub_problem
from breviary.backbones.pretrained import Backbone, usable_positions
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import cast_for_inference, learned_parameters
from breviary.config.allowed_classes import READER_SECTIONS, named_targets, untrusted_targets
from breviary.config.build import ReaderSpec, build_backbone, build_reader
from breviary.config.cli.run_names import LATEST, find_run, runs_below
from breviary.config.errors import collect_errors, raise_problems
from breviary.config.keys import CONFIGS, validate_keys
from breviary.contract import Generation
from breviary.evaluation.facts import training_record, training_text
from breviary.memory.budget import fixed_ratio
from breviary.objectives.answer import Answer
from breviary.runs.checkpoints import backbone_difference, best_checkpoint, load_trained, read_metadata
from breviary.runs.folders import load_config
from breviary.runs.schema import FORMER_TARGETS, without_added
from breviary.runtime.checkout import PACKAGES, foreign_packages, quiet_libraries
from breviary.runtime.memory_errors import IN_PYTHON, memory_errors
from breviary.serving.text_interface import TextReader

# Files downloaded from the hub: no code, no pickle.
HUB_FILES = ["*.safetensors", "*.json", "*.yaml", "*.jinja", "*.txt", "*.md", "*.model"]


@memory_errors("loading weights", IN_PYTHON)
def load_reader(path: str | Path, backbone: str | Path | None = None, device: str | None = None) -> TextReader:
    """Opens a trained reader for use from Python: texts in, answers out.

    path      a folder written by scripts/export.py, a run folder (its best checkpoint), a folder of runs or `latest`
              (the newest finished run, printed), or the hub name of an export
    backbone  folder or hub name of the backbone, where the configured path does not lead to it; None = the configured
              path, then the cache. Its hash must equal the stored one
    device    auto | cpu | cuda[:i]; None = as configured
    No downloaded code is executed and no pickle is read.
    Raises: ValueError with all problems: no such folder, damaged or untrusted files, unknown keys, another backbone,
    weights that do not fit. ImportError where other packages have the names of those that the reader needs.
    """
    quiet_libraries()
    folder = Path(path).expanduser()
    if str(path) == LATEST or runs_below(folder):
        folder = find_run(path, name="load_reader: ")
    elif not folder.exists():
        folder = hub_folder(str(path))
    cfg, text_batches = load_config(folder), OmegaConf.load(CONFIGS / "text.yaml")
    require_packages([cfg.get(section) for section in READER_SECTIONS] + [text_batches])
    checkpoint = best_checkpoint(folder)
    metadata = read_metadata(checkpoint)
    stored = metadata["backbone"]
    # From Python a reader answers questions under any training objective; the objective's metrics are not loaded.
    cfg.objective = OmegaConf.create({"_target_": f"{Answer.__module__}.{Answer.__name__}"})
    raise_problems(untrusted_targets(cfg, READER_SECTIONS))
    cfg, problems = validate_keys(cfg)
    if device is not None:
        cfg.backbone.device = device
    located = collect_errors(problems, find_backbone, cfg, stored, backbone, checkpoint)
    spec = ReaderSpec.of(cfg)
    if located is not None:
        problems += located.problems() or spec.compressor.problems(spec.settings, located)
    raise_problems(problems)
    assert located is not None
    tokenizer = located.tokenizer()
    reader = build_reader(cfg, located, tokenizer)
    load_trained(checkpoint, reader, located.fingerprint)
    cast_for_inference(reader)
    reader.identity = {
        "method": FORMER_TARGETS.get(cfg.compressor._target_, cfg.compressor._target_),
        "backbone": stored["sha256"],
        "settings": without_added({"compressor": spec.settings})["compressor"],  # as earlier versions saved them
    }
    has_weights = metadata["merged"] or bool(learned_parameters(reader))
    reader.origin = {
        "reader": cfg.reader,
        "backbone": stored["name"],
        # A frozen plain decoder has a checkpoint too, without weights.
        "training": training_text([training_record(folder, checkpoint if has_weights else None)]),
    }
    return text_reader(reader, cfg, located, tokenizer)


def text_reader(reader: Any, cfg: DictConfig, backbone: Backbone | TinyBackbone, tokenizer: Any) -> TextReader:
    """The Python interface of a loaded reader, with the prompts and decoding settings of its configuration."""
    spec, generation = ReaderSpec.of(cfg), OmegaConf.to_container(cfg.generation, resolve=True)
    problems: list[str] = []
    settings = OmegaConf.load(CONFIGS / "text.yaml")
    texts = collect_errors(problems, instantiate, settings, tokenizer=tokenizer, prompt=dict(cfg.prompt))
    raise_problems(problems)
    longest = functools.partial(
        spec.compressor.longest_context, fixed_ratio(spec.settings), usable_positions(backbone.config)
    )
    return TextReader(reader, texts, Generation(**generation | {"stop": tuple(generation["stop"])}), longest)


def require_packages(sections: Sequence[DictConfig | None]) -> None:
    """Raises ImportError where Python finds another package under the name of one that the sections need.

    Other conflicts do no harm: a reader needs its own method, not all of them.
    """
    plain = [OmegaConf.to_container(section) for section in sections if OmegaConf.is_dict(section)]
    needed = {target.partition(".")[0] for _, target in named_targets(plain, "")}
    problems = foreign_packages(name for name in PACKAGES if name in needed)
    if problems:
        raise ImportError("\n".join(problems))


def find_backbone(
    cfg: DictConfig, stored: dict[str, str], given: str | Path | None, checkpoint: Path
) -> Backbone | TinyBackbone:
    """The backbone whose hash equals the stored one: at `given`, else at the configured path, else in the cache.

    stored  name and sha256 of the backbone in the checkpoint
    Raises: ValueError with the differences of every place tried.
    """
    if given is None and not cfg.backbone.get("path"):
        places: list[str | None] = [None]  # built in code, without files
    else:
        places = [str(given)] if given else [cfg.backbone.path, f"{cache_folder()}/backbones/{stored['name']}"]
    tried: list[str] = []
    for place in dict.fromkeys(places):
        backbone = build_backbone(cfg) if place is None else _backbone_at(cfg, place)
        problems = backbone.problems()
        difference = problems or backbone_difference(checkpoint, stored, backbone.fingerprint)
        if difference and not problems and place is not None and not Path(place).is_dir():
            # The stored hash may be that of a folder, and `place` the hub name of the same files.
            folder = collect_errors(difference, hub_folder, place)
            if folder is not None:
                backbone = _backbone_at(cfg, str(folder))
                difference = backbone_difference(checkpoint, stored, backbone.fingerprint)
        if not difference:
            return backbone
        tried += difference
    name = f"{stored['name']} ({stored['sha256'][:12]})"
    hint = f'the backbone {name} was not found; give its folder or hub name: load_reader(path, backbone="...")'
    raise ValueError("\n".join([*tried, hint]))


def _backbone_at(cfg: DictConfig, place: str) -> Backbone:
    """The configured backbone with its files at another folder or hub name."""
    keys = ("dtype", "device", "attn_implementation")
    return Backbone(place, **{key: cfg.backbone[key] for key in keys})


def hub_folder(name: str) -> Path:
    """The local folder of a hub name, downloaded where the cache does not have it.

    Raises: ValueError where neither the cache nor the hub has it.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, **hub_options()))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{name}: no such folder, and neither the hub's cache nor a reachable hub has this name "
            f"({hub_problem() or str(error).splitlines()[0]})"
        ) from error
