"""Inspect a data set for `cifar data`: check its files, count its pictures, write samples and a contact sheet."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.dataset import DataStatus, check_data, fetch_data, find_data, write_samples
from toolkit.data.download import DownloadProgress
from toolkit.data.report import DataReport, draw_contact_sheet, report_data
from toolkit.errors import ToolkitError
from toolkit.files import as_text, escape, require_writable
from toolkit.reporting import Note, Progress, ignore


@dataclass(frozen=True)
class DataOverview:
    """The state of a data set's files and, if these are complete, its pictures in figures.

    Attributes:
        data: as requested.
        status: of the files.
        report: None if files are missing.
        samples: the sample pictures written.
    """

    data: str | None
    status: DataStatus
    report: DataReport | None = None
    samples: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        if self.report is None:
            return self.status.as_dict()
        samples = [as_text(path) for path in self.samples]
        return self.status.as_dict() | self.report.as_dict() | {"samples": samples}

    def require_complete(self) -> None:
        """Raise `ToolkitError` if files are missing or damaged."""
        if not self.status.complete:
            find_data(self.data, fetch=False)  # names missing files, and what else a folder may hold
            where = f" --data {shlex.quote(self.data)}" if self.data else ""
            raise ToolkitError(f"the data are damaged: `cifar data --fetch{where}` replaces the damaged files")


def inspect_data(
    data: str | None = None,
    *,
    skip_damaged: bool = False,
    fetch: bool = False,
    sheet: Path | None = None,
    samples: Path | None = None,
    per_class: int = 1,
    progress: DownloadProgress = ignore,
    on_pictures: Progress = ignore,
    note: Note = ignore,
) -> DataOverview:
    """Check the files of a data set and count its pictures; then write the samples and the contact sheet.

    Args:
        data, skip_damaged, progress, on_pictures, note: as `find_data` takes them.
        fetch: download CIFAR if files are missing.
        sheet: PNG file for training pictures of each class.
        samples: folder for sample pictures.
        per_class: sample pictures of each class.

    Raises:
        UsageError: `sheet` does not name a PNG file; as `fetch_data` and `write_samples`.
        ToolkitError: the data cannot be read or fetched, or a file cannot be written.
    """
    if sheet is not None:
        require_writable(sheet, suffix=".png")
    if fetch:
        fetch_data(data, progress=progress)
    status = check_data(data)
    if not status.complete:
        return DataOverview(data, status)
    source = find_data(data, fetch=False, skip_damaged=skip_damaged, on_pictures=on_pictures, note=note)
    report = report_data(source)
    written = write_samples(source, samples, per_class=per_class) if samples else []
    if sheet is not None:
        note(f"Contact sheet: {escape(draw_contact_sheet(source, sheet))}")
    return DataOverview(data, status, report, tuple(written))
