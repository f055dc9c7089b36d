"""The data a model is compared with: random and test images, labels, and PyTorch's logits through torchvision."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import transforms

from toolkit.data.dataset import DataSource, hash_images, identify_data, require_same_data
from toolkit.data.images import Images
from toolkit.reporting import Note
from toolkit.runs.checkpoint import Checkpoint

RANDOM_COUNT = 74  # random images before the test images
RANDOM_SEED = 20150512
TEST_BATCH = 250  # images; a few MB of activations

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """Images, labels, and the logits of the checkpoint.

    Attributes:
        name: of the data source.
        class_names: one name per label, in order.
        train: the training images.
        data: identity of the training images (`identify_data`).
        test_sha256: over the bytes of the test images and of their labels.
        images: uint8 (RANDOM_COUNT + N, 32, 32, 3), RGB: the random images, then the whole test set.
        labels: int64 (N,), of the test images.
        checkpoint: the exported network; None if it is not known.
        logits: float32 (RANDOM_COUNT + N, K), of the checkpoint; None without one.
    """

    name: str
    class_names: tuple[str, ...]
    train: Images
    data: dict[str, str]
    test_sha256: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    checkpoint: Checkpoint | None
    logits: Float32 | None


def prepare_reference(data: DataSource, checkpoint: Checkpoint | None, *, note: Note) -> Reference:
    """Load the images, and compute PyTorch's logits if a checkpoint is given.

    Raises:
        ToolkitError: the checkpoint was trained on other data than `data`.
    """
    train = data.train()
    identity = identify_data(data.name, train)
    if checkpoint:
        require_same_data(checkpoint.data, identity, what="the checkpoint")
    test = data.test()
    images = np.concatenate([_random_images(), test.images.permute(0, 2, 3, 1).numpy()])
    logits = None
    if checkpoint:
        note(f"PyTorch: logits of {len(test):,} test images")
        logits = _torch_logits(checkpoint, images)
    return Reference(
        name=data.name,
        class_names=data.class_names,
        train=train,
        data=identity,
        test_sha256=hash_images(test),
        images=images,
        labels=test.labels.numpy(),
        checkpoint=checkpoint,
        logits=logits,
    )


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, 32, 32, 3) to float32 (N, 3, 32, 32) in [0, 1], by torchvision's ToTensor, image by image."""
    to_tensor = transforms.ToTensor()
    return torch.stack([to_tensor(image) for image in images])


def _torch_logits(checkpoint: Checkpoint, images: NDArray[np.uint8]) -> Float32:
    """Compute logits, float32 (N, K), on the CPU and independently of the export code."""
    network = checkpoint.network()
    normalize = transforms.Normalize(checkpoint.statistics.mean, checkpoint.statistics.std)
    batches = (images[start : start + TEST_BATCH] for start in range(0, len(images), TEST_BATCH))
    with torch.inference_mode():
        logits: Float32 = torch.cat([network(normalize(to_pixels(batch))) for batch in batches]).numpy()
    return logits


def _random_images() -> NDArray[np.uint8]:
    """uint8 (RANDOM_COUNT, 32, 32, 3): noise, and the two extremes, all black and all white."""
    images = np.random.default_rng(RANDOM_SEED).integers(0, 256, (RANDOM_COUNT, 32, 32, 3), dtype=np.uint8)
    images[0], images[1] = 0, 255
    return images
