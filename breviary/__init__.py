"""What the methods share. Packages, from the lowest to the highest; a package imports only those before it:

contract.py  runtime  backbones  memory  decoding  objectives  selection  readers  config  runs  evaluation  training
and, side by side on top of these: report  serving  studies. No package imports a method (ram, comi, comet) or data.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`breviary.load_reader`, imported at first use: most programs need only a part of the packages."""
    if name == "load_reader":
        from breviary.serving.loading import load_reader

        return load_reader
    raise AttributeError(f"module 'breviary' has no attribute {name!r}")
