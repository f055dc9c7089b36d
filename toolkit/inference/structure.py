"""The result of examining a picture file, the memory limit, and the error for a rejected file."""

from dataclasses import dataclass
from typing import NoReturn

from toolkit.errors import ToolkitError

# Memory for decoding, over all pictures in progress; 2**27 pixels of most formats take 1 GiB.
MAX_MEMORY = 5 * 2**28  # 1.25 GiB


@dataclass(frozen=True)
class Structure:
    """Format, size and memory of a picture file, from its headers.

    Attributes:
        format: Pillow's name of the format.
        width: in pixels, before any rotation.
        height: as width.
        memory: upper bound of the bytes that decoding needs.
    """

    format: str
    width: int
    height: int
    memory: int


def require(condition: bool, fault: str) -> None:
    """Raise `ToolkitError`, with the reason, unless the condition holds."""
    if not condition:
        refuse(fault)


def refuse(fault: str) -> NoReturn:
    """Raise `ToolkitError`, with the reason and a remedy."""
    raise ToolkitError(f"not decoded, because {fault}; save it again as PNG or JPEG with an image editor")
