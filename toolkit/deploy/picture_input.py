"""The input form "picture": the picture rule as graph operators in front of the uint8 form.

One decoded picture of any size goes in; the graph cuts out the center square and resizes it to 32x32. The resizing is
`toolkit.inference.image.prepare` to within one level: ONNX Runtime's antialiased cubic kernel for uint8 is Pillow's
algorithm. Only uint8 is: a float Resize differs by up to 20 levels, and so does one with `exclude_outside=0`.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from toolkit.deploy import graph
from toolkit.deploy.graph import IMAGES, PICTURE
from toolkit.inference.image import SIDE

# The runtime beside the gate's own in which the tests compare the pixels of this prefix with the picture rule. Others
# may differ: OpenVINO ignores `antialias` without an error (its issue 35893).
TESTED_RUNTIME = "onnxruntime-web 1.30.0"

_CONSTANTS = {
    "picture_two": 2,
    "picture_height_and_width": [0, 1],  # axes of Slice
    "picture_batch_axis": [0],
    "picture_resized_shape": [1, 3, SIDE, SIDE],
}


def prepend_picture_input(model: ModelProto) -> ModelProto:
    """Copy a graph of the uint8 form with the picture rule in front of it.

    Args:
        model: input `images`, uint8 (batch, 32, 32, 3); of any precision.

    Returns:
        A graph with the input `picture`, uint8 (height, width, 3), and outputs of one row. `images` is the name of the
        resized picture within it, uint8 (1, 32, 32, 3).
    """
    copy: ModelProto = ModelProto.FromString(model.SerializeToString())
    content = copy.graph
    nodes = [*_prefix(), *content.node]
    del content.node[:]
    content.node.extend(nodes)
    content.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in _CONSTANTS.items()
    )
    del content.input[:]
    form = graph.INPUTS["picture"]
    content.input.append(helper.make_tensor_value_info(form.name, form.elem_type, form.shape))
    for output in content.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    return copy


def expose_pixels(model: ModelProto) -> ModelProto:
    """Copy a graph of the picture form with a third output: `images`, the 32x32 pixels that the network receives."""
    copy: ModelProto = ModelProto.FromString(model.SerializeToString())
    copy.graph.output.append(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, (1, SIDE, SIDE, 3)))
    return copy


def _prefix() -> list[NodeProto]:
    """From `picture`, (height, width, 3), to `images`, (1, 32, 32, 3)."""
    make = helper.make_node
    nodes = [
        make("Shape", [PICTURE], ["picture_size"], start=0, end=2),  # [height, width]
        make("ReduceMin", ["picture_size"], ["picture_side"], keepdims=1),
        make("Sub", ["picture_size", "picture_side"], ["picture_margins"]),
        make("Div", ["picture_margins", "picture_two"], ["picture_start"]),  # integers, rounded down
        make("Add", ["picture_start", "picture_side"], ["picture_end"]),
        make("Slice", [PICTURE, "picture_start", "picture_end", "picture_height_and_width"], ["picture_square"]),
        make("Unsqueeze", ["picture_square", "picture_batch_axis"], ["picture_batch"]),
        make("Transpose", ["picture_batch"], ["picture_planes"], perm=[0, 3, 1, 2]),  # (1, 3, side, side)
        make(
            "Resize",
            ["picture_planes", "", "", "picture_resized_shape"],
            ["picture_resized"],
            mode="cubic",
            cubic_coeff_a=-0.5,
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        ),
        make("Transpose", ["picture_resized"], [IMAGES], perm=[0, 2, 3, 1]),
    ]
    for node in nodes:
        node.name = f"{node.output[0]}_{node.op_type}"
    return nodes
