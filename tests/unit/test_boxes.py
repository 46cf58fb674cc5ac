"""Rented boxes: limits by the control group, profiles as data, what fits natively, GPUs, disks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekiln.boxes import disks, fits, gate, gpu, limits, profiles, release
from edgekiln.boxes.profiles import MACHINE, NoGpu, Profile
from edgekiln.errors import BoxError, DiskError, EngineError, OutOfMemoryError, UsageError
from edgekiln.home import project
from edgekiln.prefix.pythons import is_python
from edgekiln.toolchain import list_toolchains, load_toolchain

GIB = 1 << 30


def write(root: Path, **files: str) -> Path:
    """Files of a control group; `__` in a name stands for a dot."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


def membership(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "membership"
    path.write_text(text)
    return path


def test_memory_by_cgroup_v2_counts_the_cache_of_files_as_free(tmp_path: Path) -> None:
    stat = "anon 5\ninactive_file 700000000\nactive_file 300000000\n"
    told = {"memory__max": "2147483648\n", "memory__current": "1500000000\n", "memory__stat": stat}
    root = write(tmp_path / "cg", **told)
    where = membership(tmp_path, "0::/\n")
    assert limits.memory_limit(root, where) == 2 * GIB
    assert limits.memory_free(root, where) == 2 * GIB - 500_000_000


def test_memory_by_cgroup_v1_where_the_hosts_path_is_not_there(tmp_path: Path) -> None:
    stat = "total_inactive_file 100\ntotal_active_file 20\n"
    own = {"memory__limit_in_bytes": "3000\n", "memory__usage_in_bytes": "1000\n"}
    root = tmp_path / "cg"
    write(root / "memory", **own, memory__stat=stat)
    where = membership(tmp_path, "4:memory:/docker/0123\n1:cpu,cpuacct:/docker/0123\n")
    assert limits.memory_limit(root, where) == 3000
    assert limits.memory_free(root, where) == 3000 - 880


def test_no_limit_is_none(tmp_path: Path) -> None:
    root = write(tmp_path / "cg", memory__max="max\n", cpu__max="max 100000\n")
    write(root / "memory", memory__limit_in_bytes=f"{(1 << 63) - 4096}\n")
    for text in ("0::/\n", "4:memory:/\n1:cpu:/\n", ""):
        where = membership(tmp_path, text)
        assert limits.memory_limit(root, where) is None
        assert limits.memory_free(root, where) is None
        assert limits.cpu_quota(root, where) is None


def test_the_smallest_limit_on_the_way_up_holds(tmp_path: Path) -> None:
    root = write(tmp_path / "cg", memory__max="max\n")
    told = {"memory__current": "0\n", "memory__stat": ""}
    write(root / "slice", memory__max="5000\n", **told)
    write(root / "slice" / "job", memory__max="9000\n", **told)
    where = membership(tmp_path, "0::/slice/job\n")
    assert limits.memory_limit(root, where) == 5000


def test_cores_by_quota(tmp_path: Path) -> None:
    two = write(tmp_path / "v2", cpu__max="50000 100000\n")
    assert limits.cpu_quota(two, membership(tmp_path, "0::/\n")) == 0.5
    one = tmp_path / "v1"
    write(one / "cpu", cpu__cfs_quota_us="250000\n", cpu__cfs_period_us="100000\n")
    assert limits.cpu_quota(one, membership(tmp_path, "1:cpu:/x\n")) == 2.5
    write(one / "cpu", cpu__cfs_quota_us="-1\n")
    assert limits.cpu_quota(one, membership(tmp_path, "1:cpu:/x\n")) is None


@pytest.fixture
def unsettled() -> Iterator[None]:
    """A profile that a test puts in force is taken back."""
    yield
    profiles.settle("machine")


def test_every_profile_reads_and_says_what_to_rent_for_every_base() -> None:
    known = profiles.profiles()
    assert list(known) == ["autodl", "runpod", "vastai", "plain"]
    bases = {load_toolchain(name).base.name for name in list_toolchains()}
    assert all(set(profile.rent) == bases for profile in known.values())


@pytest.mark.parametrize(
    ("variable", "name"),
    [("AutoDLRegion", "autodl"), ("RUNPOD_POD_ID", "runpod"), ("VAST_CONTAINERLABEL", "vastai")],
)
def test_a_place_is_recognised_by_its_variables(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "_HINTS", ("/",))
    assert profiles.recognise({variable: "x"}).name == name


def own_profile(tmp_path: Path, **more: Any) -> Profile:
    (tmp_path / "data").mkdir(exist_ok=True)
    return Profile(name="own", summary="a place", data=(str(tmp_path / "data"),), **more)


def test_a_profiles_defaults_are_never_over_the_users(tmp_path: Path) -> None:
    profile = own_profile(tmp_path, hub="http://mirror", pip="http://index")
    home = {"HOME": str(tmp_path)}
    found = profiles.defaults(profile, home)
    assert found["EDGEKILN_HOME"] == f"{tmp_path}/data/edgekiln"
    assert found["EDGEKILN_BUILDS"] == f"{tmp_path}/data/build"
    assert found["HF_ENDPOINT"] == "http://mirror"
    mine = {**home, "EDGEKILN_HOME": "/mine", "HF_ENDPOINT": "x", "PIP_INDEX_URL": "y"}
    assert list(profiles.defaults(profile, mine)) == ["EDGEKILN_BUILDS", profiles.MARK]
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip" / "pip.conf").write_text("[global]\nindex-url = http://own\n")
    assert "PIP_INDEX_URL" not in profiles.defaults(profile, home)


def test_a_proxy_that_is_on_leaves_the_profiles_mirrors_alone(tmp_path: Path) -> None:
    proxy = profiles.Proxy(script="/etc/x", when_off="slow")
    profile = own_profile(tmp_path, hub="https://mirror.example.org/x", proxy=proxy)
    env = {"HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:1"}
    assert profiles.defaults(profile, env)["NO_PROXY"] == "mirror.example.org"
    assert "NO_PROXY" not in profiles.defaults(profile, {**env, "no_proxy": "localhost"})
    assert "NO_PROXY" not in profiles.defaults(profile, {"HOME": str(tmp_path)})
    assert "NO_PROXY" not in profiles.defaults(profile, {**env, "HF_ENDPOINT": "http://my.own"})


def test_a_data_disk_that_is_none_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    profile = Profile(name="own", summary="", data=(f"{tmp_path}/file", str(tmp_path)))
    assert profiles.data_disk(profile) == tmp_path
    assert profiles.data_disk(Profile(name="own", summary="", data=("/nowhere",))) is None


def test_a_profile_of_ones_own_is_settled_and_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsettled: None
) -> None:
    monkeypatch.delenv("EDGEKILN_HOME", raising=False)
    path = tmp_path / "ours.yaml"
    hub = "https://me:my-password@mirror.example.org"
    path.write_text(f"ours: {{summary: our cluster, data: [{tmp_path}], hub: '{hub}'}}\n")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    settled = profiles.settle(str(path))
    assert os.environ["HF_ENDPOINT"] == hub
    assert "HF_ENDPOINT=https://mirror.example.org" in settled.told()
    assert os.environ["EDGEKILN_HOME"] == f"{tmp_path}/edgekiln"
    assert f"EDGEKILN_HOME={tmp_path}/edgekiln" in settled.told()
    assert profiles.settle("machine").profile is MACHINE
    assert "EDGEKILN_HOME" not in os.environ
    assert profiles.settled().told() == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: {summary: s, dta: []}", "did you mean data?"),
        ("x: {summary: s}\ny: {summary: s}", "it holds 2"),
        ("[", "not YAML"),
        ("1", "holds no profiles"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        profiles.chosen(str(path))
    assert said in "\n".join(refused.value.lines())


def test_a_profile_that_is_none_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as refused:
        profiles.chosen("autodll")
    assert refused.value.remedy == "did you mean autodl?"
    words = [sys.executable, "-m", "edgekiln", "recipes", "list"]
    env = {**os.environ, "EDGEKILN_PROFILE": "runpot", "PYTHONPATH": str(project() / "src")}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == UsageError.exit_code
    assert "did you mean runpod?" in done.stderr


@pytest.mark.parametrize(
    ("wheels", "needs"),
    [
        (["a-1-py3-none-any.whl"], (0, 0)),
        (["a-1-cp311-cp311-manylinux_2_35_x86_64.whl"], (2, 35)),
        (["a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"], (2, 17)),
        (["a-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"], (2, 27)),
        (["a-1-py3-none-manylinux2014_x86_64.whl", "b-1-py3-none-any.whl"], (2, 17)),
    ],
)
def test_the_c_library_that_wheels_want(wheels: list[str], needs: tuple[int, int]) -> None:
    assert fits.needed_glibc(wheels)[0] == needs


def test_an_older_c_library_is_refused_with_what_to_rent() -> None:
    found = fits.unfit(load_toolchain("qnn"), have=(2, 31))
    assert found is not None
    assert "onnxruntime_qnn" in found.why and "glibc 2.35" in found.why and "2.31" in found.why
    assert "rootfs" in found.remedy
    assert isinstance(found.error(), BoxError)
    assert fits.unfit(load_toolchain("qnn"), have=(2, 35)) is None
    assert fits.unfit(load_toolchain("mnn"), have=(2, 31)) is None


def test_a_proc_that_is_masked_or_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("")
    empty = fits.without_proc([str(tmp_path / "meminfo")])
    assert empty and "is empty" in empty.why
    gone = fits.without_proc([str(tmp_path / "nothing")])
    assert gone and "No such file" in gone.why
    assert fits.without_proc() is None


def test_packages_that_are_missing_are_named() -> None:
    what = SimpleNamespace(apt=("python3", "python3-venv", "dpkg", "no-such-package-as-this"))
    if not Path("/usr/bin/dpkg-query").exists():
        pytest.skip("this machine has no dpkg")
    assert fits.missing_packages(what) == ["no-such-package-as-this"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("says", "taken"), [("final", True), ("candidate", False)])
def test_a_preview_of_python_is_passed_over(
    says: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python3.99"
    python.write_text(f"#!/bin/sh\necho cpython 3.99 {says}\n")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fits.python_here("3.99") == (str(python) if taken else "")


def test_this_python_is_known_by_its_version() -> None:
    minor = ".".join(map(str, sys.version_info[:2]))
    own = str(Path(sys.executable).resolve())
    assert is_python(own, minor) == (sys.version_info[3] == "final")
    assert not is_python(own, "3.9")


SMI = """
| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4  |
"""


def test_gpus_and_the_cuda_their_driver_runs() -> None:
    found = gpu.parse("NVIDIA GeForce RTX 2080 Ti, 22528, 22017, 550.54.15, 7.5")
    assert found is not None
    assert (found.memory, found.driver, found.compute) == (22528 << 20, "550.54.15", "7.5")
    assert "23.6 GB" in found.told()
    assert gpu.parse("No devices were found") is None
    assert gpu.newest_cuda(SMI) == "12.4"
    assert gpu.newest_cuda("") == ""
    assert gpu.cuda_of("aimet-1.34-cu121") == "12.1"
    assert gpu.cuda_of("aimet") == ""


@pytest.mark.parametrize(
    ("newest", "said"), [("12.4", "runs it"), ("11.8", "rent a box"), ("", "processor only")]
)
def test_what_a_driver_can_run(newest: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "cuda", lambda: newest)
    assert said in gpu.told_of("12.1")


def test_disks_are_told_once_and_the_data_disk_first(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"overlay / overlay rw 0 0\nproc /proc proc rw 0 0\ntmpfs {tmp_path} ext4 rw 0 0\n"
    )
    profile = Profile(name="own", summary="", data=(str(tmp_path),))
    found = disks.disks(profile, mounts)
    assert found[0].path == tmp_path and found[0].data
    assert "the data disk" in found[0].told()
    assert len([disk for disk in found if not disk.data]) <= 1


def test_a_release_says_its_name(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('ID=ubuntu\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n')
    assert release.distribution(path) == ("ubuntu", "22.04", "Ubuntu 22.04.4 LTS")
    assert release.distribution(tmp_path / "none")[0] == ""
    assert release.version("2.36") == (2, 36)
    assert release.version("musl") is None


def test_the_start_without_a_gpu_is_told_from_a_small_box(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Profile(name="p", summary="a place", no_gpu=NoGpu(memory="2.5g", good_for="fetching"))
    monkeypatch.setattr(gate, "current", lambda: place)
    monkeypatch.setattr(limits, "memory_limit", lambda: 2 * GIB)
    monkeypatch.setattr(gpu, "gpus", list)
    error = gate.started_without_gpu()
    assert error and "good for fetching" in error.why and "2.1 GB" in error.why
    monkeypatch.setattr(limits, "memory_limit", lambda: 32 * GIB)
    assert gate.started_without_gpu() is None
    monkeypatch.setattr(limits, "memory_limit", lambda: 2 * GIB)
    monkeypatch.setattr(gpu, "gpus", lambda: [object()])
    assert gate.started_without_gpu() is None


@pytest.mark.parametrize("backend", ["mnn", "qnn", "mlc"])
def test_what_any_model_needs_is_known_without_one(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgekiln.backends import load_backend

    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path))
    found = load_backend(backend)
    name, checks = gate.of_any_model(found, found.options(), ["model"], "native", memory=GIB)
    assert name == "native"
    errors = {type(check.error) for check in checks if check.error}
    assert OutOfMemoryError in errors
    (memory,) = [check for check in checks if check.name == "memory"]
    assert "135 million parameters" in memory.found
    disk = next(check for check in checks if check.name.startswith("disk"))
    assert "toolchain" in disk.found
    assert errors <= {OutOfMemoryError, DiskError}


def test_an_engine_that_is_asked_for_and_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    name, (check,) = gate.taken("docker")
    assert name == "docker"
    assert isinstance(check.error, EngineError)


def test_every_toolchains_size_is_known() -> None:
    assert all(gate.installed(load_toolchain(name)) > 0 for name in list_toolchains())
