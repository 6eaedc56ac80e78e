"""Files of encoded contexts and memories: tensors in safetensors, with a header that names their kind and reader.

All kinds (document, memory, session) are written and read here, with the same checks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from breviary.runtime.files import hash_tensors, usual_mode, written_aside

SCHEMA = 1


def write_saved(
    file: str | Path,
    kind: str,
    identity: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    header_entries: Mapping[str, str],
) -> int:
    """Writes tensors of one `kind`; returns the size of the file in bytes. A full disk leaves `file` as it was.

    identity        what must be equal for another reader to use the tensors
    header_entries  further entries of the header
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {
        "format": "pt",
        "schema": str(SCHEMA),
        "kept": kind,
        "reader": json.dumps(identity),
        "sha256": hash_tensors(stored),
    }
    with written_aside(file) as part:
        save_file(stored, part, metadata={**header, **header_entries})
        usual_mode(part)
    return Path(file).stat().st_size


def read_saved(
    file: str | Path, kinds: Collection[str], identity: Mapping[str, Any], former: Mapping[str, Any] | None = None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file of one of `kinds` (the header's `kept`), written by a reader with this identity.

    former  {key: value} that earlier versions wrote in place of the identity's, for the same reader
    Raises: ValueError for a file of another kind, schema or reader, and for a damaged one.
    """
    expected = " or ".join(kinds)
    try:
        with safe_open(file, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no iterator
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read as {expected} ({error}); give a file that save wrote") from error
    kind = header.get("kept")
    if kind not in kinds:
        raise ValueError(
            f"{file}: contains {kind or 'no saved context'}, expected {expected}; give a file that save wrote for this "
            "method"
        )
    if header["schema"] != str(SCHEMA):
        raise ValueError(f"{file}: a {kind} of schema {header['schema']}, this version reads {SCHEMA}")
    stored_identity = json.loads(header["reader"])
    differences = [
        f"{key} {stored_identity.get(key)}, here {identity.get(key)}"
        for key in {**identity, **stored_identity}
        if stored_identity.get(key) not in (identity.get(key), (former or identity).get(key, identity.get(key)))
    ]
    if differences:
        raise ValueError(f"{file}: a {kind} of another reader: " + "; ".join(differences))
    if header["sha256"] != hash_tensors(tensors):
        raise ValueError(f"{file}: damaged {kind} (checksum does not match its values); save it again")
    return header, tensors
