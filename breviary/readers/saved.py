"""Files of what a reader keeps of a text: tensors in safetensors, whose header says what they are and of which reader.

Every kind of kept thing (a document, a memory, a session) is written and read here, so that all are checked alike.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from breviary.runtime.files import hash_tensors

SCHEMA = 1


def write_saved(
    file: str | Path, kind: str, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], more: Mapping[str, str]
) -> int:
    """Writes tensors of one `kind`; gives the file's bytes.

    identity  what must be equal for one reader's memory to mean anything to another
    more      further entries of the header
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {
        "format": "pt",
        "schema": str(SCHEMA),
        "kept": kind,
        "reader": json.dumps(identity),
        "sha256": hash_tensors(stored),
    }
    save_file(stored, file, metadata=header | more)
    Path(file).chmod(0o644)  # safetensors writes private files
    return Path(file).stat().st_size


def read_saved(
    file: str | Path, kinds: Collection[str], identity: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file that is one of `kinds` (its header's `kept`) and of the reader with this identity.

    Raises: ValueError for a file that is none of them, is damaged, of a later version or of another reader.
    """
    wanted = " or ".join(kinds)
    try:
        with safe_open(file, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: no {wanted} can be read from it ({error}); give a file that save wrote") from error
    kind = header.get("kept")
    if kind not in kinds:
        raise ValueError(
            f"{file}: no {wanted}, but {kind or 'something else'}; give a file that save wrote for this method"
        )
    if header["schema"] != str(SCHEMA):
        raise ValueError(f"{file}: a {kind} of schema {header['schema']}, this version reads {SCHEMA}")
    theirs = json.loads(header["reader"])
    different = [
        f"{key} {theirs.get(key)}, here {identity.get(key)}"
        for key in {**identity, **theirs}
        if theirs.get(key) != identity.get(key)
    ]
    if different:
        raise ValueError(f"{file}: a {kind} of another reader: " + "; ".join(different))
    if header["sha256"] != hash_tensors(tensors):
        raise ValueError(f"{file}: a damaged {kind} (its values are not those that were written); save it anew")
    return header, tensors
