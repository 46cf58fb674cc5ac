"""A vendor folder: everything a toolchain is made of, for a machine that has no way out.

Archives by their names, git sources as bare repositories, wheels, and where asked the image. What
it holds is listed in its SHA256SUMS; nothing in it is believed but what a lock or a kit pins.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import offline
from edgekiln.calls import call_logged
from edgekiln.digest import digest_file
from edgekiln.errors import FetchError, KilnError, UsageError
from edgekiln.fetch import RETRIES
from edgekiln.home import home, vendor_folder
from edgekiln.kits import Kit, firstuse, gitsource, licences, making
from edgekiln.locking import held
from edgekiln.progress import Progress
from edgekiln.store import disk_error
from edgekiln.toolchain.lock import Wheel
from edgekiln.toolchain.places import answering
from edgekiln.toolchain.wheels import find_local, put
from edgekiln.user.pipconf import PipSettings, pip_command, pip_settings

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What a folder was filled with: archives and wheels by name, bare repositories."""

    files: tuple[Path, ...]
    repositories: tuple[Path, ...]


def fill(
    toolchain: Toolchain,
    folder: Path,
    progress: Progress,
    *,
    pythons: Sequence[str] | None = None,
) -> Filled:
    """Put all that the toolchain's prefix, image and kits are made of into a folder.

    With `pythons` edgekiln's own packages for these too ("" is this one's); the base's packages
    and the toolchain's come where it stands on a base of ours. Waits for another that fills it.

    Raises LicenceError, FetchError that names every file that could not be had, DigestError,
    DiskError or AccessError for the folder.
    """
    for kit in toolchain.kits:
        licences.require([kit.licence], whose=kit.name)
    with _writing(folder, progress):
        return _fill(toolchain, folder, progress, pythons)


@contextmanager
def _writing(folder: Path, progress: Progress) -> Iterator[None]:
    """The folder to fill, for one at a time: what is on its way lies there under names all share.

    What the system says of it becomes an error: full, not to be written, a file.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file", remedy="give the folder to fill")
        waiting = f"waiting: another edgekiln is filling {folder}"
        with held(folder / ".filling.lock", lambda: progress.note(waiting)):
            yield
    except OSError as error:
        raise disk_error(error, folder) from error


def _fill(
    toolchain: Toolchain, folder: Path, progress: Progress, pythons: Sequence[str] | None
) -> Filled:
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[tuple[str, KilnError]] = []
    files = _wheels(toolchain, folder, progress, failures)
    files += _debs(toolchain, folder, progress, failures)
    files += _own(pythons, folder, progress, failures)
    repositories = []
    for kit in toolchain.kits:
        archives = making.archives_of(kit, folder, progress, failures)
        files += [_put(path, folder) for path in archives]
        repositories += _repositories(kit, folder, progress, failures)
    progress.update(0, None, "writing SHA256SUMS")
    firstuse.list_in(folder, {path.name: digest_file(path) for path in files})
    if failures:
        raise making.lacking(failures)
    return Filled(files=tuple(files), repositories=tuple(repositories))


def _debs(
    toolchain: Toolchain, folder: Path, progress: Progress, failures: list[tuple[str, KilnError]]
) -> list[Path]:
    """The packages of the toolchain's lock, and those that its base is made of."""
    from edgekiln.kits import vendordebs

    base = toolchain.base
    if base.lock is None:
        return []
    every = {(deb.name, deb.version): deb for deb in (*base.lock.debs, *toolchain.lock.debs)}
    return vendordebs.fill(base, list(every.values()), folder, progress, failures)


def _own(
    pythons: Sequence[str] | None,
    folder: Path,
    progress: Progress,
    failures: list[tuple[str, KilnError]],
) -> list[Path]:
    """edgekiln's own Python packages, for `./kiln` to set itself up there."""
    from edgekiln.kits import ownpackages

    if pythons is None:
        return []
    try:
        return ownpackages.bring(folder, pythons, progress)
    except FetchError as failure:
        failures.append(("edgekiln's own packages", failure))
        return []


def save_image(engine: Engine, toolchain: Toolchain, folder: Path, progress: Progress) -> Path:
    """Put the toolchain's built image beside the rest: base, packages and wheels in one folder."""
    from edgekiln.images import exports

    target = folder / exports.export_name(toolchain)
    index = target / "index.json"
    with _writing(folder, progress):
        if not index.is_file():
            exports.export(engine, toolchain, target, progress)
        # Also where an earlier run wrote it and was broken off before the list.
        if firstuse.listed(folder, f"{target.name}/{index.name}") != digest_file(index):
            files = sorted(path for path in target.rglob("*") if path.is_file())
            sums = {path.relative_to(folder).as_posix(): digest_file(path) for path in files}
            firstuse.list_in(folder, sums)
        _save_proot(folder, progress)
    return target


def _save_proot(folder: Path, progress: Progress) -> None:
    """The two packages that run an unpacked image where neither an engine is nor root is had."""
    from edgekiln.kits import vendordebs
    from edgekiln.rootfs import proot
    from edgekiln.toolchain import load_base

    failures: list[tuple[str, KilnError]] = []
    files = vendordebs.fill(load_base(proot.BASE), proot.DEBS, folder, progress, failures)
    firstuse.list_in(folder, {path.name: digest_file(path) for path in files})
    for name, failure in failures:
        progress.note(f"without {name}, which the executor rootfs may want: {failure.short}")


def _repositories(
    kit: Kit, folder: Path, progress: Progress, failures: list[tuple[str, KilnError]]
) -> list[Path]:
    """The bare repositories of a source: those it pins, then those that only its commits name."""
    if kit.source is None:
        return []
    before = len(failures)
    making.repositories_of(kit.source, [folder], folder, progress, failures)
    found: dict[Path, None] = {}
    try:
        retries = () if failures else RETRIES
        for each, _ in gitsource.walk(kit.source, [folder], folder, progress, retries=retries):
            found[folder / each.bare] = None
    except FetchError as failure:
        if len(failures) == before:
            failures.append((f"a repository inside {kit.name}", failure))
            progress.note(f"{kit.name}: {failure.why or failure.what}")
    return list(found)


def _put(path: Path, folder: Path) -> Path:
    """The file under its name in the folder."""
    target = folder / path.name
    if path != target:
        target.unlink(missing_ok=True)
        put(path, target)
    return target


def _wheels(
    toolchain: Toolchain,
    folder: Path,
    progress: Progress,
    failures: list[tuple[str, KilnError]],
) -> list[Path]:
    """The lock's wheels and its uv: from folders of this machine, else by the user's pip."""
    pip = pip_settings()
    wanted = [toolchain.lock.uv, *toolchain.lock.wheels]
    lacking = [wheel for wheel in wanted if not _there(wheel, folder)]
    for path in find_local(lacking, pip).values():
        _put(path, folder)
    lacking = [wheel for wheel in lacking if not (folder / wheel.file).is_file()]
    bringing = _Bringing(toolchain=toolchain, folder=folder, pip=pip, progress=progress)
    try:
        bringing.bring(lacking)
    except FetchError as failure:
        progress.note(f"wheels: {failure.why or failure.what}; each by itself now")
        failures += bringing.each(lacking)
    return [folder / wheel.file for wheel in wanted if (folder / wheel.file).is_file()]


def _there(wheel: Wheel, folder: Path) -> bool:
    path = folder / wheel.file
    return path.is_file() and digest_file(path) == wheel.sha256


@dataclass(frozen=True, kw_only=True)
class _Bringing:
    """Has the user's pip bring wheels into a folder: exactly the pinned ones."""

    toolchain: Toolchain
    folder: Path
    pip: PipSettings
    progress: Progress

    def each(self, wheels: Sequence[Wheel]) -> list[tuple[str, KilnError]]:
        """What cannot be had, one by one: pip brings none of many where one is not to be had."""
        failures: list[tuple[str, KilnError]] = []
        for wheel in wheels:
            if not (self.folder / wheel.file).is_file():
                try:
                    self.bring([wheel], "--retries=0")
                except FetchError as failure:
                    failures.append((wheel.file, failure))
        return failures

    def bring(self, wheels: Sequence[Wheel], *more: str) -> None:
        """Raises FetchError where one of them is in no index, or there in other bytes only."""
        if not wheels:
            return
        offline.refuse(wheels[0].file, why=f"it is sha256:{wheels[0].sha256}")
        command = pip_command()
        if command is None:
            why = "this Python has no pip"
            raise FetchError("wheels cannot be fetched", why=why, remedy="install pip")
        log = home() / "logs" / f"wheels-{self.toolchain.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        hear = _Hearing(self.progress, len(wheels))
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".wheels-") as scratch:
            asked = Path(scratch, "requirements.txt")
            lines = (f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels)
            asked.write_text("".join(lines), encoding="utf-8")
            words = [*self._options(wheels), *more, "--requirement", str(asked), "--dest", scratch]
            code = call_logged([*command, "download", *words], log, hear)
            for path in (Path(scratch, wheel.file) for wheel in wheels):
                if path.is_file():
                    path.replace(self.folder / path.name)
        missing = [wheel.file for wheel in wheels if not _there(wheel, self.folder)]
        if code or missing:
            raise FetchError(
                f"pip could not bring {missing[0] if len(missing) == 1 else 'all wheels'}",
                why=hear.last or f"it left out {', '.join(missing)}",
                remedy=f"see {log}; pip's own settings say where it looks",
            )

    def _options(self, wheels: Sequence[Wheel]) -> list[str]:
        """pip's options for another machine: the tags of the wheels that are wanted."""
        tags = {tag for wheel in wheels for tag in wheel.file[:-4].rsplit("-", 1)[-1].split(".")}
        words = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
        words += ["--disable-pip-version-check", "--implementation=cp"]
        words += [f"--python-version={self.toolchain.python}"]
        words += [f"--platform={tag}" for tag in sorted(tags - {"any"})]
        if any(wheel.local for wheel in wheels):
            places = answering(self.toolchain.places, self.pip)
            words += [f"--extra-index-url={place}" for place in places]
        return words


class _Hearing:
    """What pip says, as progress; `last` is its last error."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress, self._count, self._done = progress, count, 0
        self.last = ""

    def __call__(self, line: str) -> None:
        if line.startswith("Collecting "):
            self._done += 1
            told = f"wheel {self._done} of {self._count}: {line.split()[1]}"
            self._progress.update(0, None, told)
        elif line.startswith("ERROR: "):
            self.last = self.last or line.removeprefix("ERROR: ").strip()[:300]


def save_base(engine: Engine, toolchain: Toolchain, folder: Path, progress: Progress) -> None:
    """Put the base's image beside the rest, where the engine has it: for engines of any system."""
    from edgekiln.images import vendoredbase

    if toolchain.base.lock is not None:
        vendoredbase.save(engine, toolchain.base, folder, progress)


def lacks(toolchain: Toolchain) -> list[str]:
    """What of the toolchain the vendor folder does not hold; nothing where none is named."""
    folder = vendor_folder()
    if folder is None:
        return []
    wheels = (toolchain.lock.uv, *toolchain.lock.wheels)
    return [wheel.file for wheel in wheels if not (folder / wheel.file).is_file()]


def told(error: KilnError, toolchain: Toolchain) -> KilnError:
    """A failed installation, with the files that the vendor folder lacks, where one is named."""
    names = lacks(toolchain)
    if not names:
        return error
    return type(error)(
        f"{error.what}; {vendor_folder()} lacks {', '.join(names)}",
        why=error.why,
        remedy=f"kiln toolchains fetch {toolchain.name} --to DIR, on a machine with a network",
    )
