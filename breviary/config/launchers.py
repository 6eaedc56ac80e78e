"""Launchers of a sweep (train.py -m hydra/launcher=NAME): what each does, and how a missing one is installed."""

from __future__ import annotations

LAUNCHERS = "hydra/launcher/"

# {name: (extra of pyproject.toml, what it does)}; basic is part of Hydra.
EXTRAS = {
    "joblib": ("joblib", "runs side by side on this machine"),
    "submitit_local": ("submitit", "runs as processes of this machine"),
    "submitit_slurm": ("submitit", "a SLURM job for each run"),
}
ALIASES = {"submitit": "submitit_slurm", "slurm": "submitit_slurm"}


def launcher_message(name: str) -> str:
    """The error message for a launcher that Hydra does not find."""
    if name in EXTRAS:
        extra, _ = EXTRAS[name]
        return (
            f"hydra/launcher={name}: not installed; run `python -m pip install -c constraints.txt '.[{extra}]'` in the "
            "checkout, or leave hydra/launcher out: runs then follow one another"
        )
    listed = "; ".join(f"{known} ({words})" for known, (_, words) in EXTRAS.items())
    meant = f"; hydra/launcher={ALIASES[name]} is near" if name in ALIASES else ""
    return f"hydra/launcher={name}: no such launcher{meant}; there are: basic (one run after another); {listed}"
