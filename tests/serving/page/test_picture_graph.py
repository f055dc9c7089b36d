"""The picture rule inside a graph (`cifar export --input picture`), run by onnxruntime-web in a browser."""

import base64

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

from tests.support.scenes import scene
from toolkit.deploy.odd_pictures import draw_edges
from toolkit.deploy.picture_input import prepend_picture_input
from toolkit.inference import prepare
from toolkit.serving.page import PageModel

OUTPUTS = ("logits", "probabilities")
VALUES = 32 * 32 * 3
SIZES = [(1, 1), (1, 600), (600, 1), (31, 33), (32, 32), (33, 31), (97, 301), (640, 480), (1203, 1601)]

# The page resizes pictures itself, to show them: here its model gets a whole one.
CLASSIFY = """async ({content, height, width}) => {
    const pixels = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    FEEDS.picture = (ort) => ({picture: new ort.Tensor("uint8", pixels, [height, width, 3])});
    return [...(await (await opened).classify(null, {})).logits];
}"""


def resizing_model() -> ModelProto:
    """Its logits are the 3,072 values of the resized picture."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", VALUES]) for name in OUTPUTS]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["floats", "flat"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        ],
        "resizing",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 32, 32, 3])],
        values,
        [numpy_helper.from_array(np.array([-1, VALUES]), "flat")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return prepend_picture_input(model)


@pytest.fixture
def resize(open_page):
    names = tuple(f"value {number}" for number in range(VALUES))
    tab = open_page(PageModel(resizing_model().SerializeToString(), "picture", names, {}))

    def resize(picture: np.ndarray) -> np.ndarray:
        height, width, _ = picture.shape
        content = base64.b64encode(picture.tobytes()).decode()
        values = tab.page.evaluate(CLASSIFY, {"content": content, "height": height, "width": width})
        return np.array(values).reshape(32, 32, 3)

    return resize


@pytest.mark.slow
def test_pixels_are_those_of_the_picture_rule(resize):
    """At most one level apart; pictures of 32x32 unchanged."""
    for size in SIZES:
        for picture in (np.asarray(scene(*size)), draw_edges(*size)):
            expected = prepare(Image.fromarray(picture)).astype(int)
            tolerance = 0 if size == (32, 32) else 1
            np.testing.assert_allclose(resize(picture), expected, rtol=0, atol=tolerance, err_msg=str(size))
