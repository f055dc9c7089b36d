"""Report a data set: images per class and split, damaged and removed pictures; and draw a contact sheet."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from toolkit.data.dataset import DataSource
from toolkit.data.images import Images
from toolkit.data.picture_set import Findings
from toolkit.files import as_text, escape, replacing

IMBALANCE = 10.0  # size of the largest class / the smallest; above this, the report has a note

_SCALE = 2  # a picture of 32x32 pixels is drawn twice as large
_GAP = 4  # pixels
_LABEL_HEIGHT = 20
_FONT_SIZE = 13


@dataclass(frozen=True)
class ClassCounts:
    """The number of images of one class.

    Attributes:
        name: of the class.
        train, val, test: images in each split.
        share: of the data set's training images, in [0, 1].
    """

    name: str
    train: int
    val: int
    test: int
    share: float


@dataclass(frozen=True)
class DataReport:
    """A data set in figures, as shown by `cifar data`.

    Attributes:
        name: "cifar10", "cifar100", "demo" or "pictures".
        folder: as of `DataSource`.
        classes: in the order of the labels.
        findings: skipped, removed, nearly identical and small pictures.
        imbalance: training images of the largest class by those of the smallest.
    """

    name: str
    folder: Path | None
    classes: tuple[ClassCounts, ...]
    findings: Findings
    imbalance: float

    @property
    def train_count(self) -> int:
        return sum(row.train for row in self.classes)

    @property
    def val_count(self) -> int:
        return sum(row.val for row in self.classes)

    @property
    def test_count(self) -> int:
        return sum(row.test for row in self.classes)

    @property
    def notes(self) -> list[str]:
        """Remarks for the user, one line each."""
        lines = self.findings.describe()
        if untested := [row.name for row in self.classes if not row.test]:
            lines.append(f"without test pictures: {_abbreviate(untested)}")
        if self.imbalance > IMBALANCE:
            lines.append(f"the largest class has {self.imbalance:.0f} times the training pictures of the smallest")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "folder": None if self.folder is None else as_text(self.folder),
            "train_count": self.train_count,
            "val_count": self.val_count,
            "test_count": self.test_count,
            "imbalance": self.imbalance,
            "classes": [vars(row) for row in self.classes],
            "findings": self.findings.as_dict(),
            "notes": self.notes,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The table for a terminal: a header, one row for each class, and the totals; ready to print."""
        header = ("class", "training", "validation", "test", "share")
        body = [
            (escape(row.name), f"{row.train:,}", f"{row.val:,}", f"{row.test:,}", f"{row.share:.1%}")
            for row in self.classes
        ]
        return [header, *body, ("all", f"{self.train_count:,}", f"{self.val_count:,}", f"{self.test_count:,}", "")]


def report_data(source: DataSource) -> DataReport:
    """Count the images of a data set; reads all of them.

    Raises:
        ToolkitError: the data cannot be read, or pictures are damaged.
    """
    classes = len(source.class_names)
    train, val, test = (_count(images, classes) for images in (source.train(), source.val(), source.test()))
    rows = tuple(
        ClassCounts(name, train=ours, val=held_out, test=tested, share=ours / sum(train))
        for name, ours, held_out, tested in zip(source.class_names, train, val, test, strict=True)
    )
    return DataReport(source.name, source.folder, rows, source.findings(), imbalance=max(train) / min(train))


def draw_contact_sheet(source: DataSource, path: Path, *, per_class: int = 8) -> Path:
    """Draw some training pictures of each class, as the network sees them, as a PNG file.

    Args:
        source: the data set.
        path: the file to write.
        per_class: pictures of each class, the first ones.

    Raises:
        ToolkitError: the data cannot be read, or the file cannot be written.
    """
    train, names = source.train(), source.class_names
    tile = train.images.shape[-1] * _SCALE + _GAP
    columns = max(1, round(math.sqrt(len(names) * (tile + _LABEL_HEIGHT + _GAP) / (per_class * tile))))
    width, height = per_class * tile + 3 * _GAP, tile + _LABEL_HEIGHT + _GAP
    rows = math.ceil(len(names) / columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), _load_font()
    for label, name in enumerate(names):
        left, top = _GAP + label // rows * width, _GAP + label % rows * height
        draw.text((left, top), _fit(escape(name), draw, font, width - 3 * _GAP), fill="black", font=font)
        chosen = (train.labels == label).nonzero().flatten()[:per_class]
        for place, image in enumerate(train.images[chosen]):
            picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            enlarged = picture.resize((tile - _GAP, tile - _GAP), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + place * tile, top + _LABEL_HEIGHT))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _load_font() -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which Matplotlib includes: Pillow's own font has only Latin letters."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", _FONT_SIZE)


def _fit(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened to a width in pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font=font) > width:
        text = text[:-1]
    return f"{text}…"


def _count(images: Images | None, classes: int) -> list[int]:
    if images is None:
        return [0] * classes
    counts: list[int] = torch.bincount(images.labels, minlength=classes).tolist()
    return counts


def _abbreviate(names: list[str]) -> str:
    return ", ".join(map(escape, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
