"""What a model is held against: random and test images, and PyTorch's answers by way of torchvision's transforms."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import transforms

from toolkit.data.cifar import MEAN, STD
from toolkit.data.dataset import DataSource, data_identity, require_same_data
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint

# Random images run in batches of these sizes: a batch dimension that was baked in fails at the first change of size.
RANDOM_BATCHES = (1, 2, 7, 64)
RANDOM_COUNT = sum(RANDOM_BATCHES)
RANDOM_SEED = 20150512
TEST_BATCH = 250  # images; a few MB of activations

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """A checkpoint and its answers.

    Attributes:
        checkpoint: the network that was exported, and where it comes from.
        checkpoint_sha256: of the checkpoint's file.
        logits: float32 (RANDOM_COUNT + N, 10), of the exam's images, in their order.
    """

    checkpoint: Checkpoint
    checkpoint_sha256: str
    logits: Float32


@dataclass(frozen=True)
class Exam:
    """The images that a model must answer, the right answers, and PyTorch's.

    Attributes:
        name: the data source's name.
        class_names: one name per label, in order.
        data: identity of the training images (`data_identity`).
        test_sha256: over the bytes of the test images and of their labels.
        images: uint8 (RANDOM_COUNT + N, 32, 32, 3), RGB: the random images, then the whole test set.
        labels: int64 (N,), of the test images.
        reference: PyTorch's side; None where no checkpoint was given.
    """

    name: str
    class_names: tuple[str, ...]
    data: dict[str, str]
    test_sha256: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    reference: Reference | None


def prepare_exam(data: DataSource, checkpoint: Path | None, *, progress: Callable[[str], None]) -> Exam:
    """Load the images, and compute PyTorch's logits where a checkpoint is given.

    Raises:
        ToolkitError: the checkpoint cannot be read, or was trained on other data than `data`.
    """
    trained = load_checkpoint(checkpoint) if checkpoint else None
    identity = data_identity(data.name, data.train())
    if trained:
        require_same_data(trained.data, identity, what=str(checkpoint))
    test = data.test()
    images = np.concatenate([_random_images(), test.images.permute(0, 2, 3, 1).numpy()])
    reference = None
    if trained and checkpoint:
        progress(f"PyTorch's logits of {len(test):,} test images")
        sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        reference = Reference(trained, sha256, _torch_logits(trained, images))
    return Exam(
        name=data.name,
        class_names=data.class_names,
        data=identity,
        test_sha256=data_identity(data.name, test)["train_sha256"],
        images=images,
        labels=test.labels.numpy(),
        reference=reference,
    )


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, 32, 32, 3) to float32 (N, 3, 32, 32) in [0, 1], by torchvision's own ToTensor, image by image."""
    to_tensor = transforms.ToTensor()
    return torch.stack([to_tensor(image) for image in images])


def _torch_logits(checkpoint: Checkpoint, images: NDArray[np.uint8]) -> Float32:
    """float32 (N, 10), on the CPU. No code of the export has a part in it."""
    network = checkpoint.network()
    normalise = transforms.Normalize(MEAN, STD)
    batches = (images[start : start + TEST_BATCH] for start in range(0, len(images), TEST_BATCH))
    with torch.inference_mode():
        logits: Float32 = torch.cat([network(normalise(pixels(batch))) for batch in batches]).numpy()
    return logits


def _random_images() -> NDArray[np.uint8]:
    """uint8 (RANDOM_COUNT, 32, 32, 3): noise, and the two extremes, all black and all white."""
    images = np.random.default_rng(RANDOM_SEED).integers(0, 256, (RANDOM_COUNT, 32, 32, 3), dtype=np.uint8)
    images[0], images[1] = 0, 255
    return images
