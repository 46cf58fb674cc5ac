"""The ways to the runtimes: mnn, qnn, mlc. Each is a module here with a BACKEND."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgekiln.errors import UsageError, nearest

if TYPE_CHECKING:
    from edgekiln.backends.base import Backend
    from edgekiln.options import Spec

_NAMES = ("mnn", "qnn", "mlc")


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
    found: dict[str, Spec] = {}
    for each in options_by_backend().values():
        for spec in each:
            if found.setdefault(spec.name, spec).type is not spec.type:
                raise TypeError(f"option {spec.name} has two types")
    return list(found.values())


def options_by_backend() -> dict[str, list[Spec]]:
    """Each backend's options: two may have one name for what differs in help and default."""
    from edgekiln.options import specs

    return {name: list(specs(load_backend(name).options).values()) for name in _NAMES}
