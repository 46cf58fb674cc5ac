"""Reads a Hexagon context binary through the vendor's own libQnnSystem.

A context binary holds compiled graphs for one chip. Its head tells the build that made it, the
chip, and every graph's inputs and outputs with types, shapes and encodings. The structures below
are those of the system library's binary interface, of which only what is read is spelled out.

The library trusts what it reads and can crash on damaged files, so `read` asks a child process.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator, Mapping
from ctypes import POINTER, c_char_p, c_float, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import childwork

from stagekit import BadInput

# Qnn_DataType_t, spelled as numpy would.
DTYPES = {
    0x0008: "int8",
    0x0016: "int16",
    0x0032: "int32",
    0x0064: "int64",
    0x0108: "uint8",
    0x0116: "uint16",
    0x0132: "uint32",
    0x0164: "uint64",
    0x0216: "float16",
    0x0232: "float32",
    0x0264: "float64",
    0x0304: "int4",
    0x0308: "int8",
    0x0316: "int16",
    0x0332: "int32",
    0x0404: "uint4",
    0x0408: "uint8",
    0x0416: "uint16",
    0x0432: "uint32",
    0x0508: "bool",
}
# A head that says more than this of anything was not written by the vendor's compiler.
_MOST = 1 << 16
_MOST_RANK = 16
_SECONDS = 120
# QNN_QUANTIZATION_ENCODING_SCALE_OFFSET
_ONE_SCALE = 0
SYSTEM = "libQnnSystem.so"


class _Version(ctypes.Structure):
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("patch", c_uint32)]


class _Quantize(ctypes.Structure):
    """How integers stand for real numbers: real = (integer + offset) * scale."""

    _fields_ = [
        ("defined", c_uint32),
        ("kind", c_uint32),
        ("scale", c_float),
        ("offset", c_int32),
        ("rest", c_uint64 * 3),
    ]


class _Tensor(ctypes.Structure):
    """Qnn_Tensor_t: a version, then one of the layouts, the same as far as it is read.

    Version and id are 32 bits wide, with 32 bits of padding that may hold anything.
    """

    _fields_ = [
        ("version", c_uint64),
        ("id", c_uint64),
        ("name", c_char_p),
        ("type", c_uint32),
        ("format", c_uint32),
        ("dtype", c_uint32),
        ("quantize", _Quantize),
        ("rank", c_uint32),
        ("shape", POINTER(c_uint32)),
        ("memory", c_uint32),
        ("rest", c_uint64 * 5),
    ]


class _Graph(ctypes.Structure):
    """QnnSystemContext_GraphInfo_t: later versions only add to the end."""

    _fields_ = [
        ("version", c_uint32),
        ("name", c_char_p),
        ("input_count", c_uint32),
        ("inputs", POINTER(_Tensor)),
        ("output_count", c_uint32),
        ("outputs", POINTER(_Tensor)),
        ("updateable_count", c_uint32),
        ("updateables", POINTER(_Tensor)),
        ("blob_size", c_uint32),
        ("blob", c_void_p),
        ("first_op", c_uint32),
        ("last_op", c_uint32),
    ]


class _Info1(ctypes.Structure):
    _fields_ = [
        ("backend", c_uint32),
        ("build", c_char_p),
        ("core_api", _Version),
        ("backend_api", _Version),
        ("soc_version", c_char_p),
        ("hardware_version", _Version),
        ("blob_version", _Version),
        ("hardware_size", c_uint32),
        ("hardware", c_void_p),
        ("blob_size", c_uint64),
        ("tensor_count", c_uint32),
        ("tensors", POINTER(_Tensor)),
        ("graph_count", c_uint32),
        ("graphs", POINTER(_Graph)),
    ]


class _Info3(ctypes.Structure):
    _fields_ = [
        ("backend", c_uint32),
        ("build", c_char_p),
        ("core_api", _Version),
        ("backend_api", _Version),
        ("soc_version", c_char_p),
        ("blob_version", _Version),
        ("blob_size", c_uint64),
        ("tensor_count", c_uint32),
        ("tensors", POINTER(_Tensor)),
        ("graph_count", c_uint32),
        ("graphs", POINTER(_Graph)),
        ("platform", c_void_p),
        ("metadata_size", c_uint32),
        ("metadata", c_void_p),
        ("soc_model", c_uint32),
    ]


class _Either(ctypes.Union):
    _fields_ = [("first", _Info1), ("third", _Info3)]


class _Info(ctypes.Structure):
    _fields_ = [("version", c_uint32), ("of", _Either)]


class _Interface(ctypes.Structure):
    """QnnSystemInterface_t, as far as the calls about contexts."""

    _fields_ = [
        ("backend", c_uint32),
        ("provider", c_char_p),
        ("api", _Version),
        ("create", ctypes.CFUNCTYPE(c_uint64, POINTER(c_void_p))),
        ("binary_info", c_void_p),
        (
            "metadata",
            ctypes.CFUNCTYPE(c_uint64, c_void_p, c_void_p, c_uint64, POINTER(POINTER(_Info))),
        ),
        ("free", ctypes.CFUNCTYPE(c_uint64, c_void_p)),
    ]


def read(file: Path) -> dict[str, Any]:
    """What a context binary says of itself.

    {"qnn_build", "soc_model", "bytes", "graphs": [{"name", "inputs": [tensor…], "outputs"}]},
    a tensor being {"name", "dtype", "shape", "scale", "offset"} with real = (integer + offset) *
    scale, both null where there is none. Raises BadInput for what is no whole context binary.
    """
    if not file.is_file():
        raise BadInput(f"{file.name} is no file", remedy="name a context binary (*.bin)")
    try:
        return childwork.call(Path(__file__), {"file": str(file)}, seconds=_SECONDS)
    except childwork.Crashed as crash:
        raise _refused(file, f"the vendor's reader could not take it ({crash.how})") from crash


def _refused(file: Path, why: str) -> BadInput:
    return BadInput(
        f"{file.name} is not a whole QNN context binary: {why}",
        remedy="build it again, or copy it again if it came from another machine",
    )


def _read_here(request: Mapping[str, Any], _: childwork.Told) -> dict[str, Any]:
    """The child's side of `read`."""
    file = Path(request["file"])
    size = file.stat().st_size
    if size == 0:
        raise _refused(file, "it is empty")
    with file.open("rb") as opened:
        # Copied on write, so that ctypes takes its address; it lives as long as this process.
        held = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    start = ctypes.addressof(ctypes.c_char.from_buffer(held))
    interface = _interface()
    context, found = c_void_p(), POINTER(_Info)()
    if interface.create(ctypes.byref(context)) != 0:
        raise RuntimeError("libQnnSystem could not make a context")
    code = interface.metadata(context, start, size, ctypes.byref(found))
    if code != 0 or not found:
        raise _refused(file, f"the vendor's reader finds it malformed (error {code & 0xFFFF})")
    return _told(file, size, found.contents)


def _interface() -> _Interface:
    import onnxruntime_qnn

    library = ctypes.CDLL(str(Path(onnxruntime_qnn.get_qnn_htp_path()).with_name(SYSTEM)))
    providers, count = POINTER(POINTER(_Interface))(), c_uint32()
    code = library.QnnSystemInterface_getProviders(ctypes.byref(providers), ctypes.byref(count))
    if code != 0 or count.value == 0:
        raise RuntimeError("libQnnSystem offers no interface")
    offered: _Interface = providers[0].contents
    return offered


def _told(file: Path, size: int, info: _Info) -> dict[str, Any]:
    if info.version not in (1, 2, 3):
        raise _refused(file, f"its head has the unknown version {info.version}")
    head = info.of.third if info.version == 3 else info.of.first
    if head.blob_size > size:
        raise _refused(
            file, f"it should hold {head.blob_size} bytes of graphs and has {size} in all"
        )
    if not 0 < head.graph_count < _MOST:
        raise _refused(file, f"it says that it holds {head.graph_count} graphs")
    return {
        "qnn_build": _text(file, head.build),
        "soc_model": int(head.soc_model) if info.version == 3 else None,
        "bytes": size,
        "graphs": [_graph(file, head.graphs[i]) for i in range(head.graph_count)],
    }


def _graph(file: Path, graph: _Graph) -> dict[str, Any]:
    if graph.version not in (1, 2, 3):
        raise _refused(file, f"a graph has the unknown version {graph.version}")
    return {
        "name": _text(file, graph.name),
        "inputs": list(_tensors(file, graph.inputs, graph.input_count)),
        "outputs": list(_tensors(file, graph.outputs, graph.output_count)),
    }


def _tensors(file: Path, tensors: Any, count: int) -> Iterator[dict[str, Any]]:
    if count > _MOST:
        raise _refused(file, f"a graph says that it has {count} tensors at its edges")
    for tensor in tensors[:count]:
        if tensor.version & 0xFFFFFFFF not in (1, 2) or tensor.rank > _MOST_RANK:
            raise _refused(file, "a tensor at a graph's edge is damaged")
        if tensor.dtype not in DTYPES:
            raise _refused(file, f"a tensor has the unknown type {tensor.dtype:#x}")
        yield {
            "name": _text(file, tensor.name),
            "dtype": DTYPES[tensor.dtype],
            "shape": [int(n) for n in tensor.shape[: tensor.rank]],
            **_encoding(file, tensor.quantize),
        }


def _encoding(file: Path, how: _Quantize) -> dict[str, Any]:
    if how.defined != 1 or how.kind != _ONE_SCALE:
        return {"scale": None, "offset": None}
    if not math.isfinite(how.scale):
        raise _refused(file, "a tensor's scale is no number")
    return {"scale": float(how.scale), "offset": int(how.offset)}


def _text(file: Path, raw: bytes | None) -> str:
    try:
        return (raw or b"").decode("utf-8")
    except UnicodeDecodeError as damaged:
        raise _refused(file, "a name in it is damaged") from damaged


if __name__ == "__main__":
    childwork.answer(_read_here)
