"""Mappings read into frozen dataclasses, strictly; and the JSON schema of those dataclasses.

One reader for every file people write or commands make: a key that does not belong is refused
by its path, with the nearest right name.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgekiln import yamls
from edgekiln.errors import ToolchainError, nearest

T = TypeVar("T")

_PLAIN = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}
_JSON = {str: "string", int: "integer", bool: "boolean", float: "number"}


def field(help: str, **kwargs: Any) -> Any:
    """A dataclass field that says what it holds; the schema repeats it."""
    return dataclasses.field(metadata={"help": help}, **kwargs)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def read(cls: type[T], data: Any, *, where: str) -> T:
    """Build `cls` from a mapping; `where` begins every path named in a message."""
    if not isinstance(data, Mapping):
        raise ToolchainError(f"{where} is not a mapping", why=f"found {type(data).__name__}")
    hints = _hints(cast("Any", cls))
    for key in data:
        if key not in hints:
            raise ToolchainError(f"{where}: {key} is not known", remedy=nearest(str(key), hints))
    values = {}
    for spec in dataclasses.fields(cls):  # type: ignore[arg-type]
        if spec.name in data:
            path = f"{where}{'.' if ': ' in where else ': '}{spec.name}"
            values[spec.name] = _value(hints[spec.name], data[spec.name], path)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ToolchainError(f"{where}: {spec.name} is missing")
    return cls(**values)


def read_named(cls: type[T], path: Path) -> T:
    """Build `cls` from a YAML file whose `name` is the file's own.

    Raises ToolchainError with the path of what is wrong.
    """
    import yaml

    try:
        data = yamls.load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ToolchainError(f"{path.name} is not YAML", why=" ".join(str(error).split())) from None
    found = read(cls, data, where=path.name)
    name = vars(found)["name"]
    if name != path.stem:
        raise ToolchainError(f"{path.name}: name is {name}", remedy=f"name: {path.stem}")
    return found


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _value(get_args(hint)[0], value, where)
    if origin is tuple:
        return _items(get_args(hint)[0], value, where)
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise ToolchainError(f"{where} is {value!r}", remedy="give `{NAME: VALUE, …}`")
        return {str(k): _value(get_args(hint)[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return read(hint, value, where=where)  # type: ignore[arg-type]
    if type(value) is not hint:
        raise ToolchainError(f"{where} is {value!r}", remedy=f"give {_PLAIN[hint]}")
    return value


def _items(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ToolchainError(f"{where} is {value!r}", remedy="give a list")
    return tuple(_value(hint, item, f"{where}[{i}]") for i, item in enumerate(value))


def plain(record: Any) -> Any:
    """The mapping `read` would take, leaving out what is at its default."""
    if dataclasses.is_dataclass(record):
        found = {}
        for spec in dataclasses.fields(record):
            value = getattr(record, spec.name)
            if value != spec.default and not (
                spec.default_factory is not dataclasses.MISSING and value == spec.default_factory()
            ):
                found[spec.name] = plain(value)
        return found
    if isinstance(record, Mapping):
        return {key: plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [plain(item) for item in record]
    return record


def schema(cls: type, *, title: str) -> dict[str, Any]:
    """The JSON schema of a record, for editors that check YAML while it is written."""
    body = _object(cls)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **body}


def _object(cls: type) -> dict[str, Any]:
    hints, required, properties = _hints(cls), [], {}
    for spec in dataclasses.fields(cls):
        known = _schema_of(hints[spec.name])
        if "help" in spec.metadata:
            known["description"] = spec.metadata["help"]
        properties[spec.name] = known
        if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            required.append(spec.name)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def _schema_of(hint: Any) -> dict[str, Any]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(get_args(hint)[0]), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(get_args(hint)[0])}
    if origin in (Mapping, dict):
        return {"type": "object", "additionalProperties": _schema_of(get_args(hint)[1])}
    if dataclasses.is_dataclass(hint):
        return _object(hint)  # type: ignore[arg-type]
    return {"type": _JSON[hint]}
