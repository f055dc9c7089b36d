"""The networks by name: `resnet20`, and the networks that it was compared with."""

from collections.abc import Callable
from functools import partial

from models.resnet import BasicBlock, ResNet

__all__ = ["MAX_PARAMETERS", "MODELS", "BasicBlock", "ResNet", "build_model"]

MAX_PARAMETERS = 600_000  # the design's limit for a model that is to be deployed

MODELS: dict[str, Callable[..., ResNet]] = {
    "resnet20": partial(ResNet, blocks_per_stage=3, widths=(16, 32, 64)),
    "resnet20-wide": partial(ResNet, blocks_per_stage=3, widths=(20, 40, 80)),
    "resnet32": partial(ResNet, blocks_per_stage=5, widths=(16, 32, 64)),
    "m6": partial(ResNet, blocks_per_stage=2, widths=(32, 64, 128)),
}


def build_model(name: str, *, num_classes: int = 10, dropout_rate: float = 0.3) -> ResNet:
    """Build a network with random weights from torch's default generator.

    Raises:
        ValueError: no network has this name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: the models are {', '.join(MODELS)}")
    return MODELS[name](num_classes=num_classes, dropout_rate=dropout_rate)
