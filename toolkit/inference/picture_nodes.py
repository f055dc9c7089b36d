"""The picture rule as ONNX nodes, in plain values; `cifar export --input picture` inserts them before the network.

From `picture`, uint8 (height, width, 3), to `images`, uint8 (1, 32, 32, 3): the center square is cut out at
((height - side) // 2, (width - side) // 2) and resized to 32x32 by an antialiased bicubic filter.
"""

from collections.abc import Mapping
from typing import NamedTuple

PICTURE, IMAGES = "picture", "images"


AttributeValue = int | float | str | tuple[int, ...]


class PictureNode(NamedTuple):
    """One operation of the standard domain. The input "" is an omitted one; the node's name is `{output}_{op_type}`."""

    op_type: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, AttributeValue]


CONSTANTS: dict[str, tuple[int, ...]] = {  # int64 vectors
    "picture_two": (2,),
    "picture_height_and_width": (0, 1),  # axes of Slice
    "picture_batch_axis": (0,),
    "picture_resized_shape": (1, 3, 32, 32),
}

RESIZE: dict[str, AttributeValue] = {  # Pillow's filter; see `toolkit.deploy.picture_input`
    "mode": "cubic",
    "cubic_coeff_a": -0.5,
    "antialias": 1,
    "exclude_outside": 1,
    "coordinate_transformation_mode": "half_pixel",
}

NODES = (
    PictureNode("Shape", (PICTURE,), "picture_size", {"start": 0, "end": 2}),  # [height, width]
    PictureNode("ReduceMin", ("picture_size",), "picture_side", {"keepdims": 1}),
    PictureNode("Sub", ("picture_size", "picture_side"), "picture_margins", {}),
    PictureNode("Div", ("picture_margins", "picture_two"), "picture_start", {}),  # integers, rounded down
    PictureNode("Add", ("picture_start", "picture_side"), "picture_end", {}),
    PictureNode("Slice", (PICTURE, "picture_start", "picture_end", "picture_height_and_width"), "picture_square", {}),
    PictureNode("Unsqueeze", ("picture_square", "picture_batch_axis"), "picture_batch", {}),
    PictureNode("Transpose", ("picture_batch",), "picture_planes", {"perm": (0, 3, 1, 2)}),  # (1, 3, side, side)
    PictureNode("Resize", ("picture_planes", "", "", "picture_resized_shape"), "picture_resized", RESIZE),
    PictureNode("Transpose", ("picture_resized",), IMAGES, {"perm": (0, 2, 3, 1)}),
)
