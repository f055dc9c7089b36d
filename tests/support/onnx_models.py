"""ONNX files of a few weights, and pictures of one color that they tell apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from toolkit.data.cifar import CLASS_NAMES


def tiny_model(
    *,
    float_nchw: bool = False,
    metadata: dict[str, str] | None = None,
    images: str = "images",
    batch: Any = "batch",
    classes: int = 10,
) -> onnx.ModelProto:
    """Averages each channel of a picture; class i's logit is a tenth of red, green or blue (i modulo 3)."""
    kind, shape = (TensorProto.FLOAT, [batch, 3, 32, 32]) if float_nchw else (TensorProto.UINT8, [batch, 32, 32, 3])
    weights = np.zeros((classes, 3), np.float32)
    weights[np.arange(classes), np.arange(classes) % 3] = 0.1 * (255 if float_nchw else 1)
    channels_first = helper.make_node("Transpose", [images], ["channels_first"], perm=[0, 3, 1, 2])
    graph = helper.make_graph(
        [
            *([] if float_nchw else [channels_first]),
            helper.make_node("Cast", [images if float_nchw else "channels_first"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("AveragePool", ["floats"], ["means"], kernel_shape=[32, 32]),
            helper.make_node("Reshape", ["means", "shape"], ["features"]),
            helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        ],
        "tiny",
        [helper.make_tensor_value_info(images, kind, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, classes])
            for name in ("logits", "probabilities")
        ],
        [
            numpy_helper.from_array(np.array([-1, 3], np.int64), "shape"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.zeros(classes, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    claims = {"class_names": json.dumps(CLASS_NAMES), "model": "tiny"} if metadata is None else metadata
    helper.set_model_props(model, {f"cifar.{key}": value for key, value in claims.items()})
    return model


def picture_model(**options: Any) -> onnx.ModelProto:
    """`tiny_model` behind the picture rule as `cifar export --input picture` writes it."""
    from toolkit.deploy.picture_input import prepend_picture_input

    return prepend_picture_input(tiny_model(**options))


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external(tensor: onnx.TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


COLORS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


def draw(path: Path, color: str = "red") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.new("RGB", (40, 36), COLORS[color]).save(file, "PNG")
    return str(path)
