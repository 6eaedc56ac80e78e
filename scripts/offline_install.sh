#!/usr/bin/env bash
# Installs an offline bundle made by scripts/offline_bundle.py. Needs no network and may be run again at any time.
#
#   bash BUNDLE/install.sh                 from the root of the Breviary checkout
#
# PYTHON           the interpreter to install into (default: python of the active environment, else python3)
# BREVIARY_ROOT    the checkout, needed where the bundle holds a backbone (default: the current folder)
# BREVIARY_CACHE   where the backbone goes (default: ~/.cache/breviary)
# BREVIARY_DATA    where data sets go (default: $BREVIARY_CACHE/data)
#
# Exit status 2: parts are missing or damaged, or a setting is wrong; the message says which.
set -euo pipefail

bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${BREVIARY_ROOT:-$PWD}
export BREVIARY_CACHE=${BREVIARY_CACHE:-$HOME/.cache/breviary}
data=${BREVIARY_DATA:-$BREVIARY_CACHE/data}
if [ -z "${PYTHON:-}" ]; then
    if [ -n "${VIRTUAL_ENV:-}" ]; then PYTHON=$VIRTUAL_ENV/bin/python; else PYTHON=python3; fi
fi
command -v "$PYTHON" >/dev/null || { echo "error: PYTHON=$PYTHON: no such interpreter" >&2; exit 2; }

# Joins parts and checks hashes, with the standard library only, since nothing is installed yet.
"$PYTHON" - "$bundle" "$data" <<'PY'
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

bundle, data = Path(sys.argv[1]), Path(sys.argv[2])


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stop(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if not (bundle / "manifest.json").is_file():
    stop(f"manifest.json is missing in {bundle}: copy it together with the parts")
files = json.loads((bundle / "manifest.json").read_text())["files"]

# Files joined by an earlier run do not need their parts.
waiting = [file for file in files
           if not ((bundle / file["path"]).is_file() and sha256(bundle / file["path"]) == file["sha256"])]
missing = [part for file in waiting for part in file["parts"] if not (bundle / part["path"]).is_file()]
damaged = [part for file in waiting for part in file["parts"]
           if (bundle / part["path"]).is_file() and sha256(bundle / part["path"]) != part["sha256"]]
if missing or damaged:
    total = sum(len(file["parts"]) for file in files)
    for part in missing:
        print(f"missing: {part['path']} ({part['bytes']} bytes)", file=sys.stderr)
    for part in damaged:
        print(f"damaged: {part['path']} (its sha256 differs from the manifest's)", file=sys.stderr)
    stop(f"{len(missing)} of {total} parts are missing and {len(damaged)} damaged: copy them into {bundle} "
         "and run this again; nothing was installed")

for file in waiting:
    joined = bundle / (file["path"] + ".joining")
    joined.parent.mkdir(parents=True, exist_ok=True)
    with open(joined, "wb") as stream:
        for part in file["parts"]:
            with open(bundle / part["path"], "rb") as piece:
                shutil.copyfileobj(piece, stream)
    if sha256(joined) != file["sha256"]:
        joined.unlink()
        stop(f"{file['path']}: the parts are complete but do not make up the file: the manifest belongs to another bundle")
    os.replace(joined, bundle / file["path"])
print(f"{len(files)} files are complete, hashes verified")

for file in files:
    if file["kind"] != "data":
        continue
    target = data / Path(file["path"]).relative_to("data")
    if target.is_file() and sha256(target) != file["sha256"]:
        stop(f"{target} exists and differs from the file in the bundle: remove one of them")
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / file["path"], str(target) + ".copying")
        os.replace(str(target) + ".copying", target)
        print(f"data: {target}")
PY

if [ -d "$bundle/backbone" ] && [ ! -f "$root/scripts/get_backbone.py" ]; then
    echo "error: BREVIARY_ROOT=$root is not a Breviary checkout (no scripts/get_backbone.py): run this from its root" >&2
    exit 2
fi

# By name, not by file: pip keeps installed packages wherever the new ones accept them.
names=()
for wheel in "$bundle"/wheels/*.whl; do
    [ -e "$wheel" ] || continue
    name=${wheel##*/}
    names+=("${name%%-*}")
done
if [ ${#names[@]} -gt 0 ]; then
    echo "installing from ${#names[@]} wheels into $("$PYTHON" -c 'import sys; print(sys.prefix)')"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$bundle/wheels" "${names[@]}"
fi

for backbone in "$bundle"/backbone/*; do
    [ -e "$backbone" ] || continue
    (cd "$root" && HF_HUB_OFFLINE=1 "$PYTHON" scripts/get_backbone.py --from "$backbone")
done
echo "done"
