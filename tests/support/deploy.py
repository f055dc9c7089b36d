"""What the tests of deployment share: networks with random weights, data with chosen right answers, checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import transforms

from models import MODELS, ResNet, build_model
from tests.support.sources import FixedSource
from toolkit.data.cifar import MEAN, STD
from toolkit.data.dataset import identify_data
from toolkit.data.images import Images
from toolkit.runs.checkpoint import Checkpoint, save_checkpoint

CLASS_NAMES = tuple(f"class{number}" for number in range(10))
RECIPE = {"optimizer": "SGD", "learning_rate": 0.1, "run": {"model": "tiny", "seed": 0}}


@contextmanager
def tiny_model() -> Iterator[None]:
    """A network of a few hundred weights under the name "tiny", with every kind of block that the real ones have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", partial(ResNet, blocks_per_stage=1, widths=(4, 6, 8)))
        yield


def randomize(network: ResNet, *, seed: int = 0) -> ResNet:
    """Random weights and BatchNorm statistics, as no initialization leaves them; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 1, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    network.eval()
    with torch.no_grad():  # logits as a trained network has them: no class is the answer to every image
        logits = network(torch.randn(64, 3, 1, 1, generator=generator).expand(-1, -1, 32, 32))
        network.linear.bias -= logits.mean(0)
        network.linear.weight *= 4 / logits.std(0).mean()
        network.linear.bias *= 4 / logits.std(0).mean()
    return network


def blocky_images(count: int, *, seed: int) -> Tensor:
    """Sixteen squares of random colors in each: unlike noise, these get different answers. uint8 (N, 3, 32, 32)."""
    squares = np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    return torch.from_numpy(squares.repeat(8, axis=2).repeat(8, axis=3))


def torchvision_logits(network: nn.Module, images: Tensor) -> Tensor:
    """uint8 (N, 3, 32, 32) to logits (N, 10), by the path that a user of torchvision would take."""
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    batch = torch.stack([prepare(transforms.functional.to_pil_image(image)) for image in images])
    with torch.inference_mode():
        return torch.cat([network(part) for part in batch.split(500)])


def source_for(
    network: nn.Module, *, test: int, wrong: int = 0, doubtful: int = 0, name: str = "blocks"
) -> FixedSource:
    """Data of which `network` names all test images right but the first `wrong` ones.

    The `doubtful` images whose two best logits were nearest to each other are left out: rounding would decide on those.
    """
    images = blocky_images(test + doubtful, seed=1)
    logits = torchvision_logits(network, images)
    best = logits.topk(2, dim=1).values
    sure = (best[:, 0] - best[:, 1]).argsort()[doubtful:].sort().values
    images, labels = images[sure], logits[sure].argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 10
    train = Images(blocky_images(64, seed=2), torch.arange(64) % 10)
    return FixedSource(name, None, CLASS_NAMES, train, Images(images, labels))


def write_checkpoint(path: Path, network: ResNet, source: FixedSource, *, model: str = "tiny") -> Path:
    checkpoint = Checkpoint(
        model=model,
        model_args={},
        class_names=source.class_names,
        recipe=RECIPE,
        data=identify_data(source.name, source.train()),
        epoch=3,
        val_accuracy=0.625,
        weights=network.state_dict(),
    )
    save_checkpoint(checkpoint, path)
    return path


@dataclass(frozen=True)
class Case:
    """A checkpoint whose every answer is right, and its data."""

    checkpoint: Path
    source: FixedSource


@contextmanager
def tiny_case(folder: Path, *, test: int, doubtful: int = 0) -> Iterator[Case]:
    """A network named "tiny" with random weights, in `folder`, and `test` images whose labels are its answers."""
    with tiny_model():
        network = randomize(build_model("tiny"))
        source = source_for(network, test=test, doubtful=doubtful)
        yield Case(write_checkpoint(folder / "best.pt", network, source), source)
