"""The runner, with real programs run as real processes."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from pathlib import Path

import pytest

from edgekiln.errors import KilnError, OutOfMemoryError, StageError, UsageError
from edgekiln.executors import kills, processes
from edgekiln.pipeline import FromPath, FromStage, Output, Pipeline, Stage
from edgekiln.runner import Limits, Place
from tests.unit.kit import Bench, stage


def chain(bench: Bench) -> Pipeline:
    """Two stages, the second reading the first."""
    write = "stage.output('made').write_text"
    bench.program("first.py", f"{write}(stage.input('text').read_text() * 2)")
    bench.program("second.py", f"{write}(stage.input('was').read_text() + '!')")
    text = bench.root / "text"
    text.write_text("ab")
    first = stage("first", "first.py", text=FromPath(path=text))
    second = stage("second", "second.py", was=FromStage(stage="first", output="made"))
    return Pipeline(stages=(first, second))


def test_outputs_flow_from_stage_to_stage(bench: Bench) -> None:
    done = bench.run(chain(bench))
    assert done["second"].entry.output("made").read_text() == "abab!"
    assert done["first"].ran and done["second"].ran


def test_a_second_run_runs_nothing(bench: Bench) -> None:
    pipeline = chain(bench)
    bench.run(pipeline)
    done = bench.run(pipeline)
    assert not any(d.ran for d in done.values())


def test_a_changed_input_runs_what_reads_it(bench: Bench) -> None:
    pipeline = chain(bench)
    bench.run(pipeline)
    (bench.root / "text").write_text("xy")
    assert bench.run(pipeline)["second"].entry.output("made").read_text() == "xyxy!"


def test_a_changed_program_runs_only_its_own_stage(bench: Bench) -> None:
    pipeline = chain(bench)
    bench.run(pipeline)
    bench.program("second.py", "stage.output('made').write_text('new')")
    done = bench.run(pipeline)
    assert not done["first"].ran
    assert done["second"].ran


def test_an_equal_output_keeps_what_follows(bench: Bench) -> None:
    pipeline = chain(bench)
    bench.run(pipeline)
    bench.program("first.py", "stage.output('made').write_text('ab' + 'ab')")
    done = bench.run(pipeline)
    assert done["first"].ran
    assert not done["second"].ran, "its input has the same bytes"


def test_what_finished_before_a_failure_is_kept(bench: Bench) -> None:
    pipeline = chain(bench)
    bench.program("second.py", "raise RuntimeError('the tool broke')")
    with pytest.raises(StageError) as caught:
        bench.run(pipeline)
    assert "the tool broke" in caught.value.why
    bench.program("second.py", "stage.output('made').write_text('mended')")
    done = bench.run(pipeline)
    assert not done["first"].ran
    assert done["second"].ran


def test_a_failed_stage_leaves_nothing(bench: Bench) -> None:
    bench.program("bad.py", "stage.output('made').write_text('half'); raise RuntimeError('x')")
    with pytest.raises(StageError):
        bench.run(Pipeline(stages=(stage("bad", "bad.py"),)))
    assert not list((bench.store.root / "doing").iterdir())
    assert not list(bench.store.entries())


def test_bad_input_is_the_users_to_mend(bench: Bench) -> None:
    bench.program("bad.py", "raise stagekit.BadInput('group size 7', remedy='use 32')")
    with pytest.raises(UsageError) as caught:
        bench.run(Pipeline(stages=(stage("bad", "bad.py"),)))
    assert (caught.value.what, caught.value.remedy) == ("group size 7", "use 32")


def test_a_promised_output_that_is_missing_fails_the_stage(bench: Bench) -> None:
    bench.program("lazy.py", "stage.output('made').mkdir()")
    lazy = Stage(
        name="lazy",
        toolchain="plain",
        program="lazy.py",
        inputs={},
        outputs=(Output(name="made", files=("llm.mnn",)),),
    )
    with pytest.raises(StageError, match=r"made/llm\.mnn"):
        bench.run(Pipeline(stages=(lazy,)))
    assert not list(bench.store.entries())


def test_a_stage_over_its_memory_is_ended_and_named(bench: Bench) -> None:
    bench.limits = type(bench.limits)(cpus=1, memory=120 << 20)
    bench.program("hungry.py", "x = bytearray(400 << 20); time.sleep(20)")
    began = time.monotonic()
    with pytest.raises(OutOfMemoryError) as caught:
        bench.run(Pipeline(stages=(stage("hungry", "hungry.py"),)))
    assert time.monotonic() - began < 15
    assert "125.8 MB" in caught.value.why


@pytest.mark.parametrize(
    ("counts", "error", "said"),
    [
        ((7, 7), StageError, "not for memory"),
        ((7, 8), OutOfMemoryError, r"killed for memory \(exit 137\)"),
        ((None, None), OutOfMemoryError, "most likely for memory"),
    ],
    ids=["by somebody", "by the kernel", "not to be told"],
)
def test_who_killed_a_stage_is_told_by_the_kernels_count(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    counts: tuple[int | None, int | None],
    error: type[KilnError],
    said: str,
) -> None:
    told = iter(counts)
    monkeypatch.setattr(processes, "kernel_kills", lambda: next(told))
    bench.program("killed.py", "os.kill(os.getpid(), 9)")
    with pytest.raises(error, match=said):
        bench.run(Pipeline(stages=(stage("killed", "killed.py"),)))


def test_the_kernels_own_count_is_read() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux counts them")
    assert isinstance(kills.kernel_kills(), int)


def test_a_stage_killed_by_somebody_is_not_called_memory(bench: Bench) -> None:
    """With the kernel's real count, which other programs of this machine may raise meanwhile."""
    before = kills.kernel_kills()
    bench.program("killed.py", "x = bytearray(60 << 20); time.sleep(1); os.kill(os.getpid(), 9)")
    with pytest.raises(KilnError) as caught:
        bench.run(Pipeline(stages=(stage("killed", "killed.py"),)))
    if before is None or kills.kernel_kills() != before:
        pytest.skip("this kernel counts no kills, or killed something for memory just now")
    assert isinstance(caught.value, StageError) and "killed from outside" in caught.value.what
    assert "last seen to hold" in caught.value.why and "kill" in caught.value.remedy


MEET = """
mine, other = Path({root!r}, stage.params['me']), Path({root!r}, stage.params['other'])
mine.write_text('')
while not other.exists():
    time.sleep(0.01)
stage.output('made').write_text('met')
"""


def meeting(bench: Bench, memory: int) -> Pipeline:
    """Two stages that end only if they run at the same time."""
    bench.program("meet.py", MEET.format(root=str(bench.root)))
    return Pipeline(
        stages=tuple(
            Stage(
                name=me,
                toolchain="plain",
                program="meet.py",
                inputs={},
                outputs=(Output(name="made"),),
                params={"me": me, "other": other},
                memory=memory,
            )
            for me, other in (("left", "right"), ("right", "left"))
        )
    )


def test_independent_stages_run_side_by_side(bench: Bench) -> None:
    assert len(bench.run(meeting(bench, 1 << 20))) == 2


def test_stages_that_do_not_fit_together_take_turns(bench: Bench) -> None:
    bench.program(
        "alone.py",
        """
        flag = Path(stage.params['flag'])
        assert not flag.exists(), 'two at once'
        flag.write_text(''); time.sleep(0.2); flag.unlink()
        stage.output('made').write_text(stage.params['me'])
        """,
    )
    stages = tuple(
        Stage(
            name=me,
            toolchain="plain",
            program="alone.py",
            inputs={},
            outputs=(Output(name="made"),),
            params={"me": me, "flag": str(bench.root / "flag")},
            memory=bench.limits.memory * 2 // 3,
        )
        for me in "ab"
    )
    assert len(bench.run(Pipeline(stages=stages))) == 2


def test_a_failure_stops_the_stages_beside_it(bench: Bench) -> None:
    bench.program("slow.py", "time.sleep(60)")
    bench.program("bad.py", "raise RuntimeError('no')")
    pipeline = Pipeline(stages=(stage("slow", "slow.py"), stage("bad", "bad.py")))
    began = time.monotonic()
    with pytest.raises(StageError, match="bad"):
        bench.run(pipeline)
    assert time.monotonic() - began < 30
    assert bench.heard.how("bad") == ["failed"]
    assert bench.heard.how("slow") == ["stopped"], "it did nothing wrong"
    assert not list((bench.store.root / "doing").iterdir())


def test_two_builds_of_one_key_make_it_once(bench: Bench, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    bench.program(
        "once.py",
        f"""
        Path({str(marks)!r}, str(os.getpid())).write_text('')
        time.sleep(0.5)
        stage.output('made').write_text('x')
        """,
    )
    pipeline = Pipeline(stages=(stage("once", "once.py"),))
    both = [threading.Thread(target=bench.run, args=(pipeline,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(list(marks.iterdir())) == 1


def test_progress_and_notes_reach_the_reporter(bench: Bench) -> None:
    bench.program(
        "tells.py",
        """
        print('a library chats'); os.system('echo and its children')
        stage.progress(1, 2, unit='layers'); stage.note('halfway')
        stage.output('made').write_text('x')
        """,
    )
    done = bench.run(Pipeline(stages=(stage("tells", "tells.py"),)))
    assert ("tells", 1, 2) in bench.heard.progress
    assert "tells: halfway" in bench.heard.said
    (log,) = (bench.root / "logs").iterdir()
    assert "a library chats" in log.read_text() and "and its children" in log.read_text()
    assert done["tells"].entry.meta["peak_memory"] > 1 << 20


def test_a_stage_has_no_network(bench: Bench) -> None:
    bench.program(
        "calls.py",
        """
        import socket
        try:
            socket.create_connection(('192.0.2.1', 80), timeout=2)
            said = 'connected'
        except TimeoutError:
            said = 'sent'
        except OSError as error:
            said = f'refused by the kernel: {error.errno}'
        stage.output('made').write_text(said)
        """,
    )
    from edgekiln.executors.processes import network_cut

    if not network_cut():
        pytest.skip("this kernel lets nobody make a network namespace here")
    done = bench.run(Pipeline(stages=(stage("calls", "calls.py"),)))
    assert done["calls"].entry.output("made").read_text() == "refused by the kernel: 101"


def test_inputs_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(UsageError, match="not made before it"):
        Pipeline(stages=(stage("b", "b.py", x=FromStage(stage="a", output="made")),))


def test_stages_elsewhere_take_nothing_of_this_machine(bench: Bench) -> None:
    """Two that would not fit here together run at once, one of them elsewhere."""
    here, there = bench.root / "here", bench.root / "there"
    wait = """
        mine, other = (Path(p) for p in stage.params["places"])
        mine.touch()
        while not other.exists():
            time.sleep(0.01)
        stage.output('made').write_text(str(stage.cpus))
    """
    bench.program("wait.py", wait)
    params = {"first": [str(here), str(there)], "second": [str(there), str(here)]}
    stages = [
        dataclasses.replace(stage(name, "wait.py", memory=900 << 20), params={"places": places})
        for name, places in params.items()
    ]
    limits = Limits(cpus=7, memory=1 << 30)
    place = Place(name="big", executor=bench.executor(), limits=limits)
    done = bench.run(Pipeline(stages=tuple(stages)), elsewhere={"second": place})
    assert done["first"].entry.output("made").read_text() == "2"
    assert done["second"].entry.output("made").read_text() == "7"
