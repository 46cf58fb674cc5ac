"""Typed options: a frozen dataclass is the schema, for flags, recipes and defaults alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from edgekiln.errors import UsageError, nearest

Value = bool | int | float | str | None
T = TypeVar("T")


def option(
    default: Value,
    help: str,
    *,
    choices: tuple[Value, ...] = (),
    low: float | None = None,
    high: float | None = None,
    path: bool = False,
    group: str = "",
    needs: tuple[str, tuple[Value, ...]] | None = None,
) -> Any:
    """A dataclass field that knows its help, its bounds and whether it names a file.

    `needs` names another option and the values of it with which this one does anything.
    """
    meta = {"help": help, "choices": choices, "low": low, "high": high, "path": path}
    return dataclasses.field(default=default, metadata={**meta, "group": group, "needs": needs})


@dataclasses.dataclass(frozen=True)
class Spec:
    """One option as the command line and the recipes see it."""

    name: str
    type: type
    optional: bool
    default: Value
    help: str
    choices: tuple[Value, ...]
    low: float | None
    high: float | None
    path: bool
    group: str
    needs: tuple[str, tuple[Value, ...]] | None = None


def specs(cls: type) -> dict[str, Spec]:
    """Every option of an options dataclass, in the order it was written."""
    hints = get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        kinds = [k for k in getattr(hints[field.name], "__args__", ()) if k is not type(None)]
        kind = kinds[0] if kinds else hints[field.name]
        found[field.name] = Spec(
            name=field.name,
            type=kind,
            optional=bool(kinds),
            default=None if field.default is dataclasses.MISSING else field.default,
            **field.metadata,
        )
    return found


def parse(cls: type[T], given: Mapping[str, Any], *, where: str) -> T:
    """Build `cls` from names and values, each checked.

    `where` names the file or command in messages, e.g. `recipes/x.yaml: options`.
    Raises UsageError for an unknown name, a wrong type, or a value out of bounds.
    """
    known = specs(cls)
    values: dict[str, Value] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{where}.{name} is not an option", remedy=nearest(name, known))
        values[name] = check(known[name], value, where=where)
    return cls(**values)


def refuse_idle(options: Any, given: Iterable[str], *, where: str) -> None:
    """Raise UsageError for an option that was given and does nothing beside the others.

    What a preset or a default says is no such option: only what somebody wrote down is.
    """
    known = specs(type(options))
    for name in given:
        needs = known[name].needs
        if needs is None:
            continue
        other, values = needs
        chosen = getattr(options, other)
        if chosen not in values:
            switch = isinstance(chosen, bool)
            wanted = "" if switch else " " + " or ".join(str(value) for value in values)
            raise UsageError(
                f"{where}.{name} is for {other}{wanted}, and {other} is "
                + (("off", "on")[chosen] if switch else str(chosen)),
                why="it would be passed over",
                remedy=f"leave {name} out, or "
                + (("add", "leave out")[chosen] if switch else "take")
                + f" {other}{wanted}",
            )


def check(spec: Spec, value: Any, *, where: str) -> Value:
    """`value` as the option's own type, or a UsageError that says what is accepted."""
    typed = _convert(spec, value, where)
    if typed is None:
        return None
    if spec.choices and typed not in spec.choices:
        accepted = ", ".join(str(c) for c in spec.choices)
        raise UsageError(f"{where}.{spec.name} is {value!r}", remedy=f"one of: {accepted}")
    if isinstance(typed, (int, float)) and not isinstance(typed, bool):
        _check_bounds(spec, typed, where)
    return typed


def _check_bounds(spec: Spec, value: float, where: str) -> None:
    # Written so that NaN, which compares with nothing, is refused too.
    if not ((spec.low is None or value >= spec.low) and (spec.high is None or value <= spec.high)):
        raise UsageError(f"{where}.{spec.name} is {value}", remedy=_range(spec))


def _range(spec: Spec) -> str:
    """The bounds in words, whole numbers with all their digits."""
    low, high = ("" if bound is None else f"{bound:.12g}" for bound in (spec.low, spec.high))
    if low and high:
        return f"from {low} to {high}"
    return f"{low} or more" if low else f"at most {high}"


_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}


def _convert(spec: Spec, value: Any, where: str) -> Value:
    if value is None and spec.optional:
        return None
    if spec.type is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
    elif spec.type in (int, float) and isinstance(value, (int, float, str)):
        if not isinstance(value, bool):
            try:
                if spec.type is float or not isinstance(value, float):
                    return spec.type(value)
            except ValueError:
                pass
    elif spec.type is str and isinstance(value, str):
        return value
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise UsageError(f"{where}.{spec.name} is {value!r}", remedy=f"give {wanted[spec.type]}")
