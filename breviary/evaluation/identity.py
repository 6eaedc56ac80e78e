"""Identity of an evaluation: everything that its numbers depend on, stored beside them.

Stored results and predictions are used where their identity equals the present one. An identity holds contents, never
paths: data that moved is the same data, other data under an old path is not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from breviary.backbones.pretrained import Backbone
from breviary.config.keys import validate_keys
from breviary.contract import Example
from breviary.evaluation.loop import Scores
from breviary.evaluation.resolve import NOT_HASHED
from breviary.evaluation.results import PREDICTIONS, PROVENANCE, RESULTS, Predictions, read_results, summarise
from breviary.evaluation.results import SCHEMA as RESULTS_SCHEMA
from breviary.evaluation.selection import SELECTION
from breviary.runs.checkpoints import weights_hash
from breviary.runs.folders import config_hash
from breviary.runs.schema import FORMER_TARGETS, rename_targets, upgrade_config, without_added
from breviary.runtime.files import read_object, write_json

IDENTITY = "identity.json"

# Keys that change no answer, or whose effect is in the examples, the weights or the fingerprint of the backbone.
NOT_SETTINGS = (*NOT_HASHED, "run", "checkpoint", "dataset", "split", *SELECTION, "name", "reader", "engine")

# Parts that do not name the folder: a change replaces the results, since the earlier ones are superseded.
NOT_IN_DIGEST = ("metrics_version", "metrics", "schema")


def evaluation_identity(
    cfg: DictConfig,
    checkpoint: Path | None,
    backbone: Any,
    items: Any,
    metrics_version: int,
    metrics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The identity of one row's evaluation.

    cfg              the row's configuration, every key validated
    checkpoint       of the trained weights, or None
    backbone         its backbone; items  the tokenised examples
    metrics_version  of the scores (TextPipeline.metrics_version)
    metrics          {name: version} of further scores (Scorer.further); absent where there are none
    Hashes the backbone's weight files and, for checkpoints without a stored hash, the trained weights.
    """
    return {
        "schema": RESULTS_SCHEMA,
        "metrics_version": metrics_version,
        "examples": items.data_hash,
        "tokens": items.tokens_hash,
        "weights": weights_hash(checkpoint) if checkpoint else None,
        "backbone": backbone_hashes(cfg, backbone),
        **({"metrics": dict(metrics)} if metrics else {}),
        **compared_settings(cfg),
    }


def backbone_hashes(cfg: DictConfig, backbone: Any) -> dict[str, Any]:
    """Fingerprints of the backbone and of other models that the compressor reads with; the end tokens."""
    hashes = {"backbone": backbone.fingerprint["sha256"]}
    file = Path(cfg.backbone.get("path") or "") / "generation_config.json"
    if file.is_file():  # not part of the fingerprint: end tokens change answers, not the function
        hashes["end_tokens"] = json.loads(file.read_bytes()).get("eos_token_id")
    for key, path in other_models(cfg.compressor).items():
        hashes[key] = Backbone(path).fingerprint["sha256"]
    return hashes


def other_models(compressor: Mapping[str, Any]) -> dict[str, str]:
    """Folders and hub names of the compressor's other models: its encoder, and the model of its relevance."""
    relevance = compressor.get("relevance")
    ranker = relevance.get("model") if isinstance(relevance, Mapping) else None
    return {key: path for key, path in (("encoder", compressor.get("encoder")), ("ranker", ranker)) if path}


def compared_settings(cfg: DictConfig) -> dict[str, Any]:
    """{"prompt", "generation", "settings"}: the configuration without paths, and without what changes no answer."""
    plain = rename_targets(OmegaConf.to_container(cfg, resolve=True), FORMER_TARGETS)
    settings = {key: value for key, value in plain.items() if key not in NOT_SETTINGS}
    settings["backbone"] = {key: value for key, value in plain["backbone"].items() if key not in ("path", "note")}
    settings["compressor"] = compressor = without_added({"compressor": plain["compressor"]})["compressor"]
    others = other_models(compressor)
    if "encoder" in others:
        compressor["encoder"] = "another backbone"
    if "ranker" in others:
        compressor["relevance"] = compressor["relevance"] | {"model": "another model"}
    return {"prompt": settings.pop("prompt"), "generation": settings.pop("generation"), "settings": settings}


def digest(identity: Mapping[str, Any]) -> str:
    """Name of the evaluation's folder: 12 hex digits."""
    named = {key: value for key, value in identity.items() if key not in NOT_IN_DIGEST}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]


def differences(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """What a stored evaluation has that the present one has not, each as a noun phrase; empty where they are equal."""
    found = []
    for key, words in (
        ("examples", "other examples"),
        ("weights", "other trained weights"),
        ("backbone", "another backbone"),
    ):
        if stored.get(key) != present[key]:
            found.append(words)
    for key in ("prompt", "generation", "settings"):
        if changed := _changed_keys(stored.get(key), present[key], "" if key == "settings" else key):
            found.append(f"other values of {', '.join(changed)}")
    if not found and stored.get("tokens") != present["tokens"]:
        found.append("another tokenizer, or tokens of another version of Breviary")
    for key, words in (("metrics_version", "metrics version"), ("schema", "results of schema")):
        if stored.get(key) != present[key]:
            found.append(f"{words} {stored.get(key)} (now {present[key]})")
    if missing := missing_metrics(stored, present):
        found.append(f"no scores of this version for {', '.join(missing)}")
    return found


def missing_metrics(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Further metrics (Scorer.further) of the present evaluation that the stored one has not, or in other versions."""
    own = stored.get("metrics", {})
    return [name for name, version in present.get("metrics", {}).items() if own.get(name) != version]


def _changed_keys(one: Any, other: Any, prefix: str) -> list[str]:
    """The keys a.b.c whose values differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [prefix]
    return [
        changed
        for key in sorted(one.keys() | other.keys())
        for changed in _changed_keys(one.get(key), other.get(key), f"{prefix}.{key}".lstrip("."))
    ]


# ------------------------------------------------------------------ the folder of an evaluation


def evaluation_folder(home: Path, cfg: DictConfig, identity: Mapping[str, Any]) -> Path:
    """The folder of one row's evaluation below `home`."""
    return home / digest(identity) / cfg.reader.replace(" ", "_")


def open_evaluation(
    home: Path,
    cfg: DictConfig,
    checkpoint: Path | None,
    identity: dict[str, Any],
    environment: dict[str, Any],
    scores: Scores,
    examples: Sequence[Example] = (),
) -> tuple[Path, str]:
    """The folder of one row's evaluation below `home`, and a message about what was found there ("" for nothing).

    The folder holds finished results, predictions to continue, or neither; whatever it holds has this identity.
    Files of another identity are renamed (NAME.TIME.old). One process calls this.
    environment  stored for the results: commit, hardware and versions when computing starts
    scores       (prediction, references) -> {metric: value}, to compare results of earlier versions with; a Scorer
                 scores stored predictions anew where only its metrics are missing
    examples     that are evaluated
    """
    name, folder = cfg.reader.replace(" ", "_"), evaluation_folder(home, cfg, identity)
    stored = read_identity(folder)
    fresh = cfg.get("fresh", False)
    if not fresh and stored is not None and (message := rescore(folder, stored, identity, scores, examples)):
        if (folder / RESULTS).is_file():
            return folder, message
        stored = read_identity(folder)
        assert stored is not None, folder
    if not fresh and stored is not None and not differences(stored["identity"], identity):
        if (folder / RESULTS).is_file():
            return folder, f"already evaluated, {folder}"
        if environment not in (stored["environment"], *stored.get("continued", [])):
            stored["continued"] = [*stored.get("continued", []), environment]
            write_json(folder / IDENTITY, stored)
        return folder, ""
    if fresh:
        message = "evaluated anew, because of fresh=true"
    else:
        former, message = find_former_results(home, name, cfg, checkpoint, identity, scores)
        if former is not None and not identity.get("metrics"):  # results without identity have no further metric
            return former, message
        message = _reason(home, folder, stored, cfg, identity) or message
    set_aside(folder)
    content = {"identity": identity, "sources": sources(cfg), "environment": environment}
    write_json(folder / IDENTITY, content)
    return folder, message


def rescore(
    folder: Path, stored: dict[str, Any], identity: dict[str, Any], scores: Any, examples: Sequence[Example]
) -> str:
    """Scores stored predictions anew where nothing but metrics is missing that texts determine; returns a message.

    Returns "", and changes nothing, in every other case. The former files are kept as NAME.TIME.old.
    scores  a Scorer; a plain function names no further metric
    """
    missing = missing_metrics(stored["identity"], identity)
    if not missing or differences(stored["identity"] | {"metrics": identity["metrics"]}, identity):
        return ""
    rows = Predictions(folder / PREDICTIONS).rows
    if any(folder.glob("predictions.rank*.jsonl")) or not rows or not hasattr(scores, "rescored"):
        return ""
    of_id = {example.id: example for example in examples}
    anew = [scores.rescored(row, of_id[row["id"]]) for row in rows]
    if None in anew:  # the reader has to measure likelihoods
        return ""
    results = read_results(folder) if (folder / RESULTS).is_file() else None
    set_aside(folder)
    known = stored["identity"].get("metrics", {}) | identity["metrics"]
    write_json(folder / IDENTITY, stored | {"identity": stored["identity"] | {"metrics": known}})
    predictions = Predictions(folder / PREDICTIONS)
    predictions.append(row | {"scores": row["scores"] | own} for row, own in zip(rows, anew))
    if results is not None:
        summary = summarise(predictions.rows, results["requested_ratio"], aggregates=scores.aggregates)
        changed = {key: summary[key] for key in ("metrics", "intervals")}
        write_json(folder / RESULTS, results | changed | {"scoring": scores.record()})
    return f"scored anew from its predictions for {', '.join(missing)}, {folder}"


def stored_provenance(folder: Path) -> dict[str, Any]:
    """PROVENANCE of when computing into `folder` began; `continued` lists that of later calls where it differs."""
    stored = read_identity(folder)
    assert stored is not None, folder
    environments = [stored["environment"], *stored.get("continued", [])]
    started, *later = ({key: one[key] for key in PROVENANCE} for one in environments)
    return started | ({"continued": later} if later else {})


def read_identity(folder: Path) -> dict[str, Any] | None:
    """Content of identity.json: identity, sources, environment; None where there is none.

    Raises: ValueError where the file is damaged.
    """
    file = folder / IDENTITY
    if not file.is_file():
        return None
    try:
        return read_object(file)
    except ValueError as error:
        raise ValueError(f"{error}, or remove the folder {folder} to evaluate anew") from error


def baselines_beside(home: Path, identity: Mapping[str, Any]) -> list[Path]:
    """Results of untrained readers below `home` on the same tokens, with the same generation and backbone, by name."""
    found = []
    for file in home.glob(f"*/*/{IDENTITY}"):
        other = read_identity(file.parent)
        shared = ("tokens", "generation", "metrics_version")
        if (
            other is not None
            and other["identity"]["weights"] is None
            and other["identity"]["backbone"]["backbone"] == identity["backbone"]["backbone"]
            and all(other["identity"][key] == identity[key] for key in shared)
            and (file.parent / RESULTS).is_file()
        ):
            found.append(file.parent / RESULTS)
    return sorted(found, key=lambda file: file.parent.name)


def set_aside(folder: Path) -> None:
    """Renames the files of an evaluation to NAME.TIME.old, so that a new one can begin in its folder."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    for file in [folder / IDENTITY, folder / RESULTS, folder / PREDICTIONS, *folder.glob("predictions.rank*.jsonl")]:
        if file.exists():
            file.rename(file.with_name(f"{file.name}.{stamp}.old"))


def sources(cfg: DictConfig) -> dict[str, Any]:
    """Where the examples and the backbone come from, as configured and as absolute paths. Explains, is not compared."""
    data = {
        key: OmegaConf.to_container(cfg.dataset, resolve=True) if key == "dataset" else cfg.get(key) for key in _DATA
    }
    given = {**data, "backbone": cfg.backbone.get("path")}
    return {"given": given, "absolute": _absolute(given)}


_DATA = ("dataset", "split", *SELECTION)


def _absolute(value: Any) -> Any:
    """The value with every path of an existing file or folder made absolute."""
    if isinstance(value, dict):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value


def _reason(home: Path, folder: Path, stored: dict[str, Any] | None, cfg: DictConfig, identity: dict[str, Any]) -> str:
    """Why an evaluation begins anew although one with the same paths and settings exists; "" where there is none."""
    if stored is not None:
        return f"evaluated anew: {folder} holds {', '.join(differences(stored['identity'], identity))}"
    if any(folder.glob("predictions*.jsonl")) or (folder / RESULTS).is_file():
        return f"evaluated anew: {folder} holds predictions without {IDENTITY}, so it is not known of what"
    own, settings = sources(cfg), compared_settings(cfg)
    files = sorted(home.glob(f"*/{folder.name}/{IDENTITY}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        other = read_identity(file.parent)
        assert other is not None, file
        same_source = any(own[key] == other["sources"][key] for key in own)
        if same_source and all(settings[key] == other["identity"].get(key) for key in settings):
            return f"evaluated anew: {file.parent} holds {', '.join(differences(other['identity'], identity))}"
    return ""


# ------------------------------------------------------------------ results of earlier versions


def find_former_results(
    home: Path, name: str, cfg: DictConfig, checkpoint: Path | None, identity: Mapping[str, Any], scores: Scores
) -> tuple[Path | None, str]:
    """A folder with results of a version without identities, where all that they state agrees, and a message.

    They state the configuration, the hash of the examples and the checkpoint's name, and their predictions have scores.
    """
    message = ""
    for file in sorted(home.glob(f"*/{name}/{RESULTS}")):
        if (file.parent / IDENTITY).exists():
            continue
        results = read_results(file)
        config = _former_config(home, file, results, cfg, checkpoint)
        if config is None or compared_settings(config) != compared_settings(cfg):
            continue
        if results["data_hash"] != identity["examples"]:
            message = f"evaluated anew: {file.parent} holds other examples"
        elif not _has_scores(file.with_name(PREDICTIONS), results["n"], scores):
            message = f"evaluated anew: {file.parent} holds other scores than the metrics of this version give"
        else:
            return file.parent, (
                f"uses {file.parent}, results of an earlier version: data, configuration, checkpoint name and scores "
                "agree; weights and backbone cannot be compared. fresh=true evaluates anew"
            )
    return None, message


def _has_scores(file: Path, count: int, scores: Scores) -> bool:
    """Whether there are `count` predictions, each with the scores that `scores` returns for it."""
    rows = Predictions(file).rows
    return len(rows) == count and all(
        row["scores"].items() >= scores(row["prediction"], row["references"]).items() for row in rows
    )


def _former_config(
    home: Path, file: Path, results: Mapping[str, Any], cfg: DictConfig, checkpoint: Path | None
) -> DictConfig | None:
    """The configuration that the results at `file` were computed with; None where it is not known to be that.

    The folder's name is the hash of configuration and checkpoint name. Baselines have no configuration of their own:
    their folder is named by the configuration of the run that they were evaluated with, or by their own.
    """
    suffix = checkpoint.name if checkpoint else ""
    folder = file.parent.parent.name
    if results["config"]:
        own = OmegaConf.create(results["config"])
        return _current(own, str(file)) if config_hash(own, NOT_HASHED, suffix) == folder else None
    if config_hash(cfg, NOT_HASHED, suffix) == folder:
        return cfg
    for other in sorted(home.glob(f"*/*/{RESULTS}")):
        config = read_results(other)["config"]
        if config and config_hash(OmegaConf.create(config), NOT_HASHED) == folder:
            return _current(OmegaConf.create(config | _reader_sections(cfg)), str(other))
    return None


def _reader_sections(cfg: DictConfig) -> dict[str, Any]:
    """What distinguishes a baseline from the run that it is evaluated with."""
    return {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("compressor", "decoder")}


def _current(cfg: DictConfig, source: str) -> DictConfig:
    """A configuration of an earlier version with the keys of this one."""
    return validate_keys(upgrade_config(cfg, source))[0]
