"""YAML read by libyaml's loader where PyYAML has it, which is far faster and gives the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(text: str | bytes) -> Any:
    """What a YAML text says. Raises yaml.YAMLError for what is none."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def beside(module: str, name: str) -> Any:
    """What a data file of ours says that lies beside a module (its __file__)."""
    return load(Path(module).with_name(name).read_bytes())
