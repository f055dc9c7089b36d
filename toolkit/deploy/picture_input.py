"""The input format "picture": the picture rule as graph operators before a graph with uint8 input.

The graph takes one decoded picture of any size, crops the center square and resizes it to 32x32. Pixels agree with
`toolkit.inference.image.prepare` to within one level: for uint8, ONNX Runtime's antialiased cubic kernel is Pillow's
algorithm. A Resize of floats, or with `exclude_outside=0`, differs by up to 20 levels.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from toolkit.deploy import graph
from toolkit.deploy.graph import IMAGES
from toolkit.inference.image import SIDE
from toolkit.inference.picture_nodes import CONSTANTS, NODES, PictureNode

# Another runtime, besides that of the gate, in which the tests compare the resized pixels with the picture rule. Others
# may differ: OpenVINO ignores `antialias` without an error (its issue 35893).
TESTED_RUNTIME = "onnxruntime-web 1.30.0"


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
    nodes = [*map(_make_node, NODES), *content.node]
    del content.node[:]
    content.node.extend(nodes)
    content.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in CONSTANTS.items()
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


def _make_node(node: PictureNode) -> NodeProto:
    made = helper.make_node(node.op_type, node.inputs, [node.output], f"{node.output}_{node.op_type}")
    made.attribute.extend(helper.make_attribute(name, value) for name, value in node.attributes.items())
    return made
