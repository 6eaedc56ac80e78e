"""Opens a run folder, an exported folder or one of the hub as a reader of texts; see checkpoint.load_reader."""

from __future__ import annotations

import functools
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from breviary.backbones.pretrained import Backbone
from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import ReaderSpec, build_backbone, build_reader
from breviary.config.errors import collect_errors, raise_problems
from breviary.config.keys import CONFIGS, validate_keys
from breviary.config.trusted import READER, untrusted_targets
from breviary.contract import Generation
from breviary.memory.budget import fixed_ratio
from breviary.objectives.answer import Answer
from breviary.runs.checkpoints import backbone_difference, best_checkpoint, load_trained, read_metadata
from breviary.runs.folders import load_config
from breviary.runs.schema import FORMER_TARGETS
from breviary.runtime.checkout import quiet_libraries, require_checkout
from breviary.serving.text_reader import TextReader

# Of a folder of the hub; no code, no pickle.
FILES = ["*.safetensors", "*.json", "*.yaml", "*.jinja", "*.txt", "*.md", "*.model"]


def load_reader(path: str | Path, backbone: str | Path | None = None, device: str | None = None) -> TextReader:
    """Opens a trained reader for use from Python: texts in, answers out.

    path      a folder written by scripts/export.py, a run folder (its best checkpoint), or the hub name of an export
    backbone  folder or hub name of the backbone, where the configured path does not lead to it; None = the configured
              path, then the cache. Its hash must equal the stored one
    device    auto | cpu | cuda[:i]; None = as configured
    Needs a checkout of Breviary. No downloaded code is executed and no pickle is read.
    Raises: ValueError with all problems: no such folder, damaged or untrusted files, unknown keys, another backbone,
    weights that do not fit.
    """
    require_checkout()
    quiet_libraries()
    folder = Path(path).expanduser() if Path(path).expanduser().exists() else hub_folder(str(path))
    cfg = load_config(folder)
    checkpoint = best_checkpoint(folder)
    stored = read_metadata(checkpoint)["backbone"]
    # From Python a reader answers questions, whatever its training objective; the objective's metrics are not loaded.
    cfg.objective = OmegaConf.create({"_target_": f"{Answer.__module__}.{Answer.__name__}"})
    raise_problems(untrusted_targets(cfg, READER))
    cfg, problems = validate_keys(cfg)
    if device is not None:
        cfg.backbone.device = device
    found = collect_errors(problems, find_backbone, cfg, stored, backbone, checkpoint)
    spec = ReaderSpec.of(cfg)
    if found is not None:
        problems += found.problems() or spec.compressor.problems(spec.settings, found)
    raise_problems(problems)
    assert found is not None
    tokenizer = found.tokenizer()
    reader = build_reader(cfg, found, tokenizer)
    load_trained(checkpoint, reader, found.fingerprint)
    reader.identity = {
        "method": FORMER_TARGETS.get(cfg.compressor._target_, cfg.compressor._target_),
        "backbone": stored["sha256"],
        "settings": spec.settings,
    }
    texts = instantiate(OmegaConf.load(CONFIGS / "text.yaml"), tokenizer=tokenizer, prompt=dict(cfg.prompt))
    generation = OmegaConf.to_container(cfg.generation, resolve=True)
    positions = found.config.max_position_embeddings
    limit = functools.partial(spec.compressor.longest_context, fixed_ratio(spec.settings), positions)
    return TextReader(reader, texts, Generation(**generation | {"stop": tuple(generation["stop"])}), limit)


def find_backbone(
    cfg: DictConfig, stored: dict[str, str], given: str | Path | None, checkpoint: Path
) -> Backbone | TinyBackbone:
    """The backbone with the stored hash: the one given, else where the configuration says, else in the cache.

    Raises: ValueError with what was tried.
    """
    if given is None and not cfg.backbone.get("path"):
        places: list[str | None] = [None]  # made in code
    else:
        cache = OmegaConf.load(CONFIGS / "paths" / "default.yaml").cache
        places = [str(given)] if given else [cfg.backbone.path, f"{cache}/backbones/{stored['name']}"]
    tried = []
    for place in dict.fromkeys(places):
        backbone = build_backbone(cfg) if place is None else _at(cfg, place)
        problems = backbone.problems()
        difference = problems or backbone_difference(checkpoint, stored, backbone.fingerprint)
        if difference and not problems and place is not None and not Path(place).is_dir():
            # The hash is of a folder's files, and this is a name: the same files may be what it names.
            folder = collect_errors(difference, hub_folder, place)
            if folder is not None:
                backbone = _at(cfg, str(folder))
                difference = backbone_difference(checkpoint, stored, backbone.fingerprint)
        if not difference:
            return backbone
        tried += difference
    wanted = f"{stored['name']} ({stored['sha256'][:12]})"
    raise ValueError(
        "\n".join(
            [
                *tried,
                f'the backbone {wanted} was not found; give its folder or hub name: load_reader(path, backbone="...")',
            ]
        )
    )


def _at(cfg: DictConfig, place: str) -> Backbone:
    """The configured backbone, read from another place."""
    keys = ("dtype", "device", "attn_implementation")
    return Backbone(place, **{key: cfg.backbone[key] for key in keys})


def hub_folder(name: str) -> Path:
    """The folder of a hub name, from the cache or the hub.

    Raises: ValueError where it is in neither.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{name}: no such folder, and nothing of that name in the hub's cache or within reach "
            f"({str(error).splitlines()[0]})"
        ) from error
