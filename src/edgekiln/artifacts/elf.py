"""ELF files: what machine they are for, what they need, and whether 16 KB pages can load them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.artifacts import Facts
from edgekiln.errors import ArtifactError

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

MAGIC = b"\x7fELF"
_PAGE_16K = 16384
# By the names people and Android use; pyelftools has the ELF specification's.
_MACHINES = {
    "EM_AARCH64": "arm64-v8a (AArch64)",
    "EM_ARM": "armeabi-v7a (32-bit ARM)",
    "EM_X86_64": "x86-64",
    "EM_386": "x86 (32-bit)",
    "EM_RISCV": "RISC-V",
    "EM_QDSP6": "Hexagon DSP",
}
_TYPES = {
    "ET_REL": "object file",
    "ET_EXEC": "program at a fixed address",
    "ET_DYN": "shared library",
    "ET_CORE": "core dump",
}
_QUALCOMMS = ("libQnn", "libGenie", "libSnpe", "libHtp")


def is_elf(start: bytes) -> bool:
    """Whether a file that begins so is an ELF file."""
    return start[:4] == MAGIC


def is_elf_for(path: Path, machine: str) -> bool:
    """Whether a file is an ELF for a machine, by its name in the specification (EM_AARCH64)."""
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                return False
        return bool(read_elf(path)["machine"] == machine)
    except (OSError, ArtifactError):
        return False


def read_elf(path: Path) -> dict[str, Any]:
    """What an ELF file says of itself. Raises ArtifactError for one that is cut short."""
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            _check_whole(elf, path.stat().st_size)
            facts = _facts(elf)
    except (ELFError, ConstructError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is a damaged ELF file",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="get or make the file again: it was cut short, or changed",
        ) from error
    if any(name.startswith(_QUALCOMMS) for name in (path.name, facts["soname"])):
        from edgekiln.backends.qairt_sdk import build_ids

        build = build_ids(path)[1]
        facts |= {"qnn_build": f"v{build}"} if build else {}
    return facts


def _check_whole(elf: ELFFile, size: int) -> None:
    """Segments and the table of sections must lie inside the file."""
    end = elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"]
    for segment in elf.iter_segments():
        end = max(end, segment["p_offset"] + segment["p_filesz"])
    if end > size:
        raise ValueError(f"it should have {end} bytes and has {size}")


def _facts(elf: ELFFile) -> dict[str, Any]:
    machine = str(elf["e_machine"])
    facts: dict[str, Any] = {
        "machine": machine,
        "abi": _MACHINES.get(machine, machine.removeprefix("EM_")),
        "bits": elf.elfclass,
        "type": _type(elf),
        "soname": "",
        "needed": [],
    }
    facts |= _dynamic(elf)
    aligns = sorted({s["p_align"] for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"})
    facts["load_align"] = aligns
    # An object file has no segments: the linker will choose.
    facts["pages_16k"] = all(a % _PAGE_16K == 0 for a in aligns) if aligns else None
    return facts | _notes(elf)


def _type(elf: ELFFile) -> str:
    kind = str(elf["e_type"])
    # A program that may lie anywhere has the type of a library, and names its linker.
    if kind == "ET_DYN" and any(s["p_type"] == "PT_INTERP" for s in elf.iter_segments()):
        return "program"
    return _TYPES.get(kind, kind)


def _dynamic(elf: ELFFile) -> dict[str, Any]:
    from elftools.elf.dynamic import DynamicSegment

    found: dict[str, Any] = {"soname": "", "needed": []}
    for segment in elf.iter_segments():
        if isinstance(segment, DynamicSegment):
            for tag in segment.iter_tags():
                # Set on the tags that have them, under these names.
                if tag.entry.d_tag == "DT_NEEDED":
                    found["needed"].append(vars(tag)["needed"])
                elif tag.entry.d_tag == "DT_SONAME":
                    found["soname"] = vars(tag)["soname"]
    return found


def _notes(elf: ELFFile) -> dict[str, Any]:
    """Build id, and Android's note: API level, then the NDK's version and build as text."""
    from elftools.elf.segments import NoteSegment

    found: dict[str, Any] = {}
    for segment in elf.iter_segments():
        if not isinstance(segment, NoteSegment):
            continue
        for note in segment.iter_notes():
            if note["n_type"] == "NT_GNU_BUILD_ID":
                found["build_id"] = str(note["n_desc"])
            elif note["n_name"] == "Android" and note["n_descsz"] >= 4:
                found |= _android(note)
    return found


def _android(note: Any) -> dict[str, Any]:
    raw = note["n_descdata"]
    data = raw if isinstance(raw, bytes) else str(raw).encode("latin-1")
    found: dict[str, Any] = {"android_api": int.from_bytes(data[:4], "little")}
    texts = [data[4:68], data[68:132]]
    version, build = (t.split(b"\0")[0].decode("ascii", "replace") for t in texts)
    if version:
        found["ndk"] = f"{version} ({build})" if build else version
    return found


def machine_name(number: int) -> str:
    """What people call the machine of that number in the specification."""
    from elftools.elf.enums import ENUM_E_MACHINE

    names = {value: name for name, value in ENUM_E_MACHINE.items() if isinstance(value, int)}
    name = names.get(number, f"machine {number}")
    return _MACHINES.get(name, name.removeprefix("EM_"))


def read(path: Path) -> Facts:
    """An ELF file for `kiln inspect`."""
    facts = read_elf(path)
    return Facts(kind="elf", facts=facts, rows=tuple(_rows(facts)))


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts in words, by their names."""
    rows = [("kind", f"ELF {facts['type']}, {facts['bits']} bits"), ("for", facts["abi"])]
    if facts["soname"]:
        rows.append(("name", facts["soname"]))
    if facts["needed"]:
        rows.append(("needs", ", ".join(facts["needed"])))
    if facts["load_align"]:
        aligns = ", ".join(f"{a}" for a in facts["load_align"])
        word = "fits" if facts["pages_16k"] else "does not fit"
        rows.append(("pages", f"aligned to {aligns} bytes: {word} 16 KB pages"))
    named = (("android_api", "Android"), ("ndk", "NDK"), ("build_id", "build id"))
    for name, word in (*named, ("qnn_build", "QNN build")):
        if name in facts:
            value = f"API {facts[name]}" if name == "android_api" else str(facts[name])
            rows.append((word, value))
    return rows
