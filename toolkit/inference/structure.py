"""What examining a picture file gives, its limits, and how a file beyond them is refused."""

from dataclasses import dataclass
from typing import NoReturn

from toolkit.errors import ToolkitError

# What decoding all pictures that are in work may take together; 2**27 pixels of most formats take 1 GiB.
MAX_MEMORY = 5 * 2**28  # 1.25 GiB


@dataclass(frozen=True)
class Structure:
    """What a picture file says of itself.

    Attributes:
        format: the name that Pillow gives the format.
        width: in pixels, before any rotation.
        height: as width.
        memory: the bytes that decoding takes at most.
    """

    format: str
    width: int
    height: int
    memory: int


def require(condition: bool, fault: str) -> None:
    """Raise `ToolkitError` with the fault of the file, unless the condition holds."""
    if not condition:
        refuse(fault)


def refuse(fault: str) -> NoReturn:
    """Raise `ToolkitError` with the fault and what to do."""
    raise ToolkitError(f"is not decoded: {fault}; save it again as PNG or JPEG with an image editor")
