"""What the inputs of a decoder's linear layers carry: the norm of each, over a calibration text.

The layers are gone through one by one. Each is made 32 bits wide, sees what the layers before it
give once they are pruned, tells its inputs' norms, is pruned by them, and is run again for
what the next one sees. Memory holds the model in its own type, one layer in 32 bits, and the
hidden states of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pruning

from stagekit import BadInput

if TYPE_CHECKING:
    from torch import Tensor

# Tokens seen together: as the texts of the proof are read.
WINDOW = 256
LEAST_TOKENS = 4 * WINDOW


class _Enough(Exception):  # noqa: N818 - it is no error
    """What the first layer is given is known."""


def windows(model: Path, text: str, most: int, trusted: bool) -> list[list[int]]:
    """The text's tokens in windows of one length. Raises BadInput where it is too short."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        model, local_files_only=True, trust_remote_code=trusted
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:most]
    cut = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
    if len(cut) * WINDOW < LEAST_TOKENS:
        raise BadInput(
            f"the calibration text has {len(ids)} tokens: too few to tell which inputs matter",
            remedy=f"give {LEAST_TOKENS} tokens or more, or take --sparsity-method magnitude",
        )
    return cut


def norms(
    model: Path, cut: list[list[int]], trusted: bool, told: Callable[[int, int], None]
) -> dict[str, Tensor]:
    """The norm of each input of each linear layer, by pruning's keys."""
    import torch

    with torch.inference_mode():
        whole = _load(model, trusted)
        layers = _layers(whole)
        given = _given(whole, layers, cut[0])
        hidden = [_first_input(whole, layers, ids) for ids in cut]
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(layers):
            found |= _one_layer(
                layer, f"{_list_name(whole, layers)}.{number}", given, hidden, number
            )
            told(number + 1, len(layers))
    return found


def _load(model: Path, trusted: bool) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model, local_files_only=True, trust_remote_code=trusted, dtype="auto"
        )
    except ValueError as error:  # what transformers raises for a model that also sees
        raise BadInput(
            "the layers of this kind of model cannot be run one by one",
            remedy="take --sparsity-method magnitude",
        ) from error
    return loaded.eval()


def _layers(whole: Any) -> Any:
    import torch

    body = whole.get_decoder()
    for name in ("layers", "h"):
        found = getattr(body, name, None)
        if isinstance(found, torch.nn.ModuleList) and len(found):
            return found
    raise BadInput("the model's layers were not found", remedy="take --sparsity-method magnitude")


def _list_name(whole: Any, layers: Any) -> str:
    body = whole.get_decoder()
    return next(name for name in ("layers", "h") if getattr(body, name, None) is layers)


def _given(whole: Any, layers: Any, ids: list[int]) -> list[tuple[Any, Any]]:
    """What each layer is called with beside the hidden states: one for windows of one length."""
    import torch

    calls: list[tuple[Any, Any]] = []

    def keep(_: Any, args: Any, kwargs: Any) -> None:
        calls.append((_wide(args[1:]), _wide(dict(kwargs))))

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        whole(torch.tensor([ids]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _wide(value: Any) -> Any:
    """The same with its floats in 32 bits."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_wide(v) for v in value)
    if isinstance(value, dict):
        return {k: _wide(v) for k, v in value.items() if k != "hidden_states"}
    return value


def _first_input(whole: Any, layers: Any, ids: list[int]) -> Tensor:
    """The hidden states the first layer sees."""
    import torch

    seen: list[Tensor] = []

    def stop(_: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).float())
        raise _Enough

    hook = layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        whole(torch.tensor([ids]), use_cache=False)
    except _Enough:
        pass
    finally:
        hook.remove()
    return seen[0]


def _one_layer(
    layer: Any, name: str, given: list[tuple[Any, Any]], hidden: list[Tensor], number: int
) -> dict[str, Tensor]:
    """The norms of one layer's inputs; `hidden` becomes what the pruned layer gives."""
    import torch

    own = next(layer.parameters()).dtype
    layer.float()
    linear = {f"{name}.{k}": m for k, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
    args, kwargs = given[number]
    with _squares(linear) as sums:
        for states in hidden:
            layer(states, *args, **kwargs)
    found = {key: total.sqrt().float() for key, total in sums.items()}
    for key, module in linear.items():
        if key in found:
            pruning.prune(module.weight.data, found[key])
    for i, states in enumerate(hidden):
        out = layer(states, *args, **kwargs)
        hidden[i] = out[0] if isinstance(out, tuple) else out
    layer.to(own)
    return found


@contextmanager
def _squares(linear: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Sums, in 64 bits, of the squares of each input of each module while the block runs."""
    sums: dict[str, Tensor] = {}

    def hear(key: str) -> Callable[[Any, Any, Any], None]:
        def heard(_: Any, args: Any, __: Any) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            total = rows.double().square().sum(dim=0)
            sums[key] = sums[key] + total if key in sums else total

        return heard

    hooks = [m.register_forward_hook(hear(key)) for key, m in linear.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
