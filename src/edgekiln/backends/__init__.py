"""The ways to the runtimes: mnn. Each is a module here with a BACKEND, loaded when asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgekiln.errors import UsageError, nearest

if TYPE_CHECKING:
    from edgekiln.backends.base import Backend
    from edgekiln.options import Spec

_NAMES = ("mnn",)


def list_backends() -> list[str]:
    """The names a recipe may give."""
    return list(_NAMES)


def load_backend(name: str) -> Backend:
    """The backend of that name. Raises UsageError for one that there is not."""
    if name not in _NAMES:
        raise UsageError(f"there is no backend {name}", remedy=nearest(name, _NAMES))
    module = importlib.import_module(f"edgekiln.backends.{name}")
    backend: Backend = module.BACKEND
    return backend


def option_specs() -> list[Spec]:
    """The options of all backends, each once: they become the flags of `build`.

    Raises TypeError where two backends give one name to options of two types.
    """
    from edgekiln.options import specs

    found: dict[str, Spec] = {}
    for name in _NAMES:
        for spec in specs(load_backend(name).options).values():
            if found.setdefault(spec.name, spec).type is not spec.type:
                raise TypeError(f"option {spec.name} has two types")
    return list(found.values())
