"""Arrays in an .npz whose bytes depend on the arrays alone.

numpy's own savez asks zipfile for room for 64-bit sizes in each member's header, and Python from
3.11.4 on writes that otherwise than older ones: the same arrays came out as other bytes under a
distribution's Python 3.11.2 than under a 3.11.7 of one's own. Members written whole, their size
known beforehand, are the same under every Python. numpy.load reads them as it reads its own.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What a zip can tell earliest; SOURCE_DATE_EPOCH is the same for every stage.
_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_MODE = 0o644


def write(file: Path, **arrays: NDArray[Any]) -> None:
    """Write `arrays` by their names, in the order given, not compressed."""
    import numpy as np

    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            held = io.BytesIO()
            np.lib.format.write_array(held, np.ascontiguousarray(array), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", _TIME)
            member.create_system, member.external_attr = _UNIX, _MODE << 16
            archive.writestr(member, held.getvalue())
