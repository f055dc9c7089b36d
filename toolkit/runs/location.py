"""Where a run's pictures are on this machine: `data.json` in the run folder; no part of checkpoints and models."""

import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import open_regular, replacing

FILE = "data.json"

_MAX_BYTES = 64 * 2**10


@dataclass(frozen=True)
class DataLocation:
    """The place of the pictures that a run was trained on.

    Attributes:
        path: the folder or CSV file, absolute.
        skip_damaged: whether pictures that cannot be read were skipped.
    """

    path: Path
    skip_damaged: bool

    def write(self, run: Path) -> None:
        """Write `data.json` into a run folder. Raises `ToolkitError` if it cannot be written."""
        values = {"path": str(self.path), "skip_damaged": self.skip_damaged}
        with replacing(run / FILE) as temporary:
            temporary.write_text(json.dumps(values) + "\n", encoding="utf-8")


def location_beside(checkpoint: Path) -> DataLocation | None:
    """The location that a run records beside its checkpoint; None where it records none, or the place is gone."""
    path = checkpoint.parent / FILE
    if not path.is_file():
        return None
    try:
        with open_regular(path, max_bytes=_MAX_BYTES) as file:
            values = json.loads(file.read(_MAX_BYTES))
        location = DataLocation(Path(values["path"]), skip_damaged=bool(values["skip_damaged"]))
        return location if location.path.exists() else None
    except (ToolkitError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
