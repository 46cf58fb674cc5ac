"""Model directories: found, fetched, looked into."""

from __future__ import annotations

from edgekiln.models.model import Model

__all__ = ["Model"]
