"""What mlc_llm's log says: figures of weights and memory, the prefix, why a package is refused.

The lines are those of upstream's convert_weight, compile and package. What stands before the text
([date] LEVEL file.py:LINE:) changes between versions and is not looked at; colours are taken out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from toolcall import plain

_GIGABYTES = re.compile(r"Parameter size after quantization: ([\d.]+) GB")
_PARAMETERS = re.compile(r"Total parameters: ([\d,]+)")
_BITS = re.compile(r"Bits per parameter: ([\d.]+)")
_TOTAL = re.compile(
    r"Total memory usage without KV cache: ([\d.]+) MB "
    r"\(Parameters: ([\d.]+) MB\. Temporary buffer: ([\d.]+) MB\)"
)
_WITH_4K = re.compile(r"Total memory usage with a 4K KV cache: ([\d.]+) MB")
_PREFIX = re.compile(r'--system-lib-prefix\s+"(\w*)"')
_OVERRIDING = re.compile(r"Overriding (\w+) from (\S+) to (\S+)$")
_NO_FIELD = re.compile(r"Cannot override (\w+), because \S+ does not have this field")
_NOT_FOUND = re.compile(r"model_lib (\S+) requested in .* is not found in ")
_AVAILABLE = re.compile(r"current available model_libs in .*: \[(.*)\]")
_4K = 4096


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What convert_weight says of the weights it wrote. `gb` is of 1024³ bytes."""

    parameters: int
    bits_per_parameter: float
    gb: float


def weights(lines: Iterable[str]) -> Weights | None:
    """The figures of convert_weight; None where the log ends before them."""
    text = _joined(lines)
    size, count, bits = (p.search(text) for p in (_GIGABYTES, _PARAMETERS, _BITS))
    if not (size and count and bits):
        return None
    return Weights(
        parameters=int(count[1].replace(",", "")),
        bits_per_parameter=float(bits[1]),
        gb=float(size[1]),
    )


def memory(lines: Iterable[str]) -> dict[str, float | None]:
    """The figures of compile in MB of 1024² bytes; None for what the log does not say.

    The log gives a token's share of the cache with two digits only (0.03 MB), so it is taken from
    the total with a cache of 4096 tokens. Versions up to 0.19 say nothing of the cache.
    """
    text = _joined(lines)
    total, with_4k = _TOTAL.search(text), _WITH_4K.search(text)
    figures: dict[str, float | None] = {
        "parameters_mb": float(total[2]) if total else None,
        "temporary_mb": float(total[3]) if total else None,
        "total_mb": float(total[1]) if total else None,
        "total_4k_mb": float(with_4k[1]) if with_4k else None,
        "kv_mb_per_token": None,
    }
    if total and with_4k:
        figures["kv_mb_per_token"] = round((float(with_4k[1]) - float(total[1])) / _4K, 6)
    return figures


def prefix(lines: Iterable[str]) -> str | None:
    """The prefix of the system library that compile says it uses; "" is none, None not said."""
    found = _PREFIX.search(_joined(lines))
    return found[1] if found else None


def overridden(lines: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What gen_config or compile changed in the model's configuration: from what, to what."""
    found = (_OVERRIDING.search(plain(line)) for line in lines)
    return {f[1]: (f[2], f[3]) for f in found if f and f[2] != f[3]}


def not_taken(lines: Iterable[str]) -> list[str]:
    """The overrides that the model's configuration has no field for."""
    return _NO_FIELD.findall(_joined(lines))


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why `mlc_llm package` ends with exit code 255: names asked for, names that are there."""

    asked: tuple[str, ...]
    there: tuple[str, ...]


def refused(lines: Iterable[str]) -> Refused | None:
    """The validation that failed, if one did."""
    text = _joined(lines)
    asked = _NOT_FOUND.findall(text)
    if not asked:
        return None
    there = _AVAILABLE.search(text)
    names = re.findall(r"'([^']*)'", there[1]) if there else []
    return Refused(asked=tuple(asked), there=tuple(names))


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(plain(line) for line in lines)
