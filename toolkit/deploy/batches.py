"""Draw the batches of the gate. Each run draws new ones, so that a file cannot be tuned to them."""

import numpy as np
from numpy.typing import NDArray

LARGEST = 64  # images; the default of `cifar predict`
REQUIRED = (1, 2, 16, LARGEST)  # sizes in every draw; 16: the batch of one thread of `cifar predict`
REPEATED = 64  # images that run a second time, in another batch and position
TWICE = 8  # images that occur twice in one batch


def draw_batches(images: int, *, seed: int) -> list[NDArray[np.int64]]:
    """Distribute image indices 0 to `images` - 1 over batches of 1 to `LARGEST`, in random order; repeat some.

    Returns:
        The image indices of each batch, int64 (size,). Every image is in at least one batch.
    """
    generator = np.random.default_rng(seed)
    again = generator.choice(images, min(REPEATED, images), replace=False)
    order = generator.permutation(np.concatenate([np.arange(images), again]))
    sizes = [*REQUIRED, *generator.integers(1, LARGEST + 1, len(order))]  # more than enough
    batches = [batch for batch in np.split(order, np.cumsum(sizes)) if len(batch)]
    twice = np.tile(generator.choice(images, min(TWICE, images), replace=False), 2)
    batches.append(generator.permutation(twice))
    return [batches[number] for number in generator.permutation(len(batches))]
