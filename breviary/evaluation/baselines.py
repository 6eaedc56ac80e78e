"""Baselines without weights of their own are evaluated once for a data set and backbone, and shared by all runs.

Each evaluation keeps a copy in its own folder, so that a run stays complete when it is moved.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from breviary.config.build import ReaderSpec
from breviary.evaluation.identity import IDENTITY, differences, evaluation_folder, read_identity, sources
from breviary.evaluation.results import PREDICTIONS, RESULTS, read_results
from breviary.readers.keep_tokens import KeepTokens
from breviary.runtime.files import write_json

# Settings of the run beside which a baseline is evaluated. They have no effect on a reader without weights of its own.
WITHOUT_EFFECT = ("seed", "decoder")


def share_baseline(home: Path, cfg: DictConfig, identity: Mapping[str, Any]) -> tuple[Path, str] | None:
    """Copies the results of an equal baseline of any run into the row's folder below `home`.

    Returns the folder and a message; None where the row is no baseline without weights, where its folder holds an
    evaluation, or where there are no such results. One process calls this.
    """
    folder = evaluation_folder(home, cfg, identity)
    if not _is_shared(cfg, identity) or (folder / IDENTITY).exists():
        return None
    wanted = _shared_identity(identity)
    for file in _candidates(home, cfg):
        stored = read_identity(file.parent)
        assert stored is not None, file
        if stored["identity"]["weights"] is None and not differences(_shared_identity(stored["identity"]), wanted):
            _copy(file.parent, folder, cfg, stored | {"identity": dict(identity), "sources": sources(cfg)})
            return folder, f"reuses {file.parent}: the same examples, backbone, prompt and settings"
    return None


def _is_shared(cfg: DictConfig, identity: Mapping[str, Any]) -> bool:
    has_weights = cfg.run or identity["weights"] or not issubclass(ReaderSpec.of(cfg).compressor, KeepTokens)
    return not has_weights and not cfg.get("fresh", False)


def _shared_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in identity["settings"].items() if key not in WITHOUT_EFFECT}
    return {**identity, "settings": settings}


def _candidates(home: Path, cfg: DictConfig) -> Iterator[Path]:
    """Identities of finished evaluations: of runs beside this one and below paths.outputs, the newest first."""
    outputs = Path(cfg.paths.outputs)
    found = {
        file.resolve(): file
        for place in (home.parent.parent, outputs)
        for pattern in ("eval", "*/eval", "*/*/eval", "*/*/*/eval")
        for file in place.glob(f"{pattern}/*/*/{IDENTITY}")
        if (file.parent / RESULTS).is_file()
    }
    yield from sorted(found.values(), key=lambda file: file.stat().st_mtime, reverse=True)


def _copy(source: Path, folder: Path, cfg: DictConfig, stored: dict[str, Any]) -> None:
    """The results last: a copy that is interrupted continues as an evaluation."""
    results = read_results(source)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / IDENTITY, stored)
    if (source / PREDICTIONS).is_file():
        shutil.copyfile(source / PREDICTIONS, folder / PREDICTIONS)
    shared_from = results.get("shared_from", str(source))
    write_json(folder / RESULTS, results | {"reader": cfg.reader, "run": str(folder), "shared_from": shared_from})
