"""Find the data that a model was trained on, from the model's metadata and the `data.json` of its run folder.

`data.json` holds the path of the user's own pictures on this machine; checkpoints and ONNX files never do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.dataset import FOUND_BY_NAME, PICTURES, DataSource, find_data, find_data_name
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import escape, open_regular, replacing
from toolkit.reporting import Note, ignore

FILE = "data.json"

_MAX_BYTES = 64 * 2**10


@dataclass(frozen=True)
class DataLocation:
    """The location of the pictures that a run was trained on.

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


def read_location(checkpoint: Path) -> DataLocation | None:
    """Read the location from the run folder of a checkpoint; None if there is none or it no longer exists."""
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


def find_training_data(
    recorded: Mapping[str, str],
    *,
    data: str | None,
    model: Path,
    skip_damaged: bool = False,
    note: Note = ignore,
    **callbacks: Any,
) -> DataSource:
    """Find `data`; if it is None, the data set that the model or its run records, else the default of `find_data`.

    Args:
        recorded: the identity of its training data that the model records; empty if it records none.
        data: as `find_data` takes it; None for the recorded one, or for the default of `find_data` if none is recorded.
        model: the model's file, in its run folder or elsewhere.
        skip_damaged: continue without pictures that cannot be read; also set if the run skipped them.
        note: called with one line that names the data where `data` is None.
        callbacks: `progress` and `on_pictures` of `find_data`.

    Raises:
        UsageError: the model was trained on a folder of pictures whose path is unknown.
        ToolkitError: the data were not found, are unusable, or the download failed.
    """
    name = recorded.get("name")
    if data is None and name in FOUND_BY_NAME:
        note(f"Using the {name} data, on which this model was trained")
        data = name
    elif data is None and name in (None, PICTURES) and (location := read_location(model)):
        note(f"Using the pictures in {escape(location.path)}, on which this model was trained")
        data, skip_damaged = str(location.path), skip_damaged or location.skip_damaged
    elif data is None and name == PICTURES and find_data_name() != PICTURES:
        raise UsageError(f"{escape(model)} was trained on a folder of pictures: name it with --data FOLDER")
    return find_data(data, skip_damaged=skip_damaged, note=note, **callbacks)
