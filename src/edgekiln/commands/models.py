"""`kiln models`: fetch a model and say what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln import units

if TYPE_CHECKING:
    pass
from edgekiln.commands.common import shown_task


def models_get(ref: str, *, refresh: bool, trust_pickle: bool) -> None:
    """Fetch a model where it must be fetched, and print what it is."""
    from edgekiln.models import resolve

    with shown_task("model") as task:
        model = resolve(ref, progress=task, refresh=refresh, trust_pickle=trust_pickle)
    rows = [
        ("name", model.name),
        ("source", model.source),
        ("path", str(model.path)),
        ("family", model.family),
        ("parameters", f"{model.parameters:,}"),
        ("weights", f"{units.size(model.weight_bytes)} {model.dtype}"),
        ("layers", str(model.layers)),
        ("hidden size", str(model.hidden_size)),
        ("heads", f"{model.heads} ({model.kv_heads} for keys and values, {model.head_dim} wide)"),
        ("vocabulary", str(model.vocab_size)),
        ("context", str(model.context_length) if model.context_length else "not said"),
        ("embedding", "shared with the head" if model.tied else "of its own"),
    ]
    for name, value in rows:
        print(f"{name:<12} {value}")
