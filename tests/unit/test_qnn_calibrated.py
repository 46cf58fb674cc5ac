"""What AIMET's two flows share: their parameters, the chunks SeqMSE sees, the files they leave."""

from __future__ import annotations

import io
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "qnn")]

import calibrated  # noqa: E402

from stagekit import BadInput, Stage  # noqa: E402


def stage(tmp_path: Path, **params: Any) -> Stage:
    return Stage(inputs=tmp_path, outputs=tmp_path, params=params, cpus=2, events=io.StringIO())


def test_parameters_have_the_write_ups_precision_where_none_is_given(tmp_path: Path) -> None:
    wanted = calibrated.Wanted.of(stage(tmp_path))
    assert (wanted.weight_bits, wanted.head_bits, wanted.embed_bits) == (4, 8, 16)
    assert wanted.seq_mse and wanted.arch == "v79"


def test_seq_mse_is_for_four_bits(tmp_path: Path) -> None:
    assert not calibrated.Wanted.of(stage(tmp_path, weight_bits=8, seq_mse=True)).seq_mse
    assert not calibrated.Wanted.of(stage(tmp_path, weight_bits=4, seq_mse=False)).seq_mse


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"weight_block": 32}, "not in blocks"),
        ({"rotate": True}, "rotate belongs to the quantizer edgekiln"),
        ({"gptq": True}, "gptq belongs"),
        ({"weight_bits": 5}, "weight_bits is 5, not one of 4, 8"),
        ({"head_bits": 4}, "head_bits is 4"),
    ],
)
def test_what_aimets_flows_cannot_do_is_refused(
    tmp_path: Path, params: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        calibrated.Wanted.of(stage(tmp_path, **params))


def test_seq_mse_sees_ten_chunks_spread_over_all() -> None:
    assert calibrated.for_seq_mse([7, 8, 9]) == [7, 8, 9]
    seen = calibrated.for_seq_mse(list(range(36)))
    assert len(seen) == 10 and seen[0] == 0 and seen[-1] >= 32
    steps = {after - before for before, after in pairwise(seen)}
    assert steps <= {3, 4}


def test_the_files_do_not_depend_on_the_order_of_what_was_found(tmp_path: Path) -> None:
    first, second = {"name": "b", "bw": 16}, {"name": "a", "bw": 8}
    for folder, entries in (("one", [first, second]), ("two", [second, first])):
        found = {"activation_encodings": entries, "param_encodings": []}
        calibrated.write(tmp_path / folder, found, {"quantizer": "x"})
    one, two = (tmp_path / folder / "encodings.json" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    told = json.loads(one.read_text())
    assert told["version"] == "1.0.0"
    assert [entry["name"] for entry in told["activation_encodings"]] == ["a", "b"]
