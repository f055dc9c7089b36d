"""Which kind of step a run takes: eager, compiled, captured as a CUDA graph, or both; and the reason, in words.

The choice follows from the recipe and the device alone, never from a timing: so a run repeats itself, and a resumed run
takes the same steps as the uninterrupted one.
"""

from dataclasses import dataclass

import torch

from toolkit.errors import UsageError

MODES = ("auto", "eager", "compiled", "graph", "compiled-graph")


@dataclass(frozen=True)
class CompileFigures:
    """What compiling costs and gains on one kind of device and number format.

    Attributes:
        seconds: to compile forward and backward for one shape.
        eager, compiled: images a second at batch 128.
    """

    seconds: float
    eager: float
    compiled: float

    def pays(self, images: int, shapes: int) -> bool:
        """Whether compiling `shapes` shapes takes less time than it saves over `images` images."""
        return images * (1 / self.eager - 1 / self.compiled) > shapes * self.seconds


# Measured by `cifar bench train --device cpu --batch-size 128` on an AMD EPYC with AVX-512-BF16 (no AMX), two threads,
# torch 2.15: compiling loses, because inductor's BatchNorm is no faster than torch's own and the convolutions stay as
# they are (a later run there: 4% faster than eager). CUDA has not been measured: the same command does it.
MEASURED = {
    ("cpu", torch.float32): CompileFigures(seconds=48, eager=537, compiled=509),
    ("cpu", torch.bfloat16): CompileFigures(seconds=37, eager=800, compiled=792),
}


@dataclass(frozen=True)
class Choice:
    """A mode that is no longer "auto", and why it was taken ("" where there is nothing to say)."""

    mode: str
    note: str = ""


def choose_mode(mode: str, device: torch.device, dtype: torch.dtype, *, images: int, shapes: int = 1) -> Choice:
    """The kind of step for a run.

    Args:
        mode: one of `MODES`; anything but "auto" is taken at its word where the device can do it.
        device: where the run trains.
        dtype: number format of the forward pass.
        images: how many images the whole run trains on, epochs times training images.
        shapes: how many sizes of batch are compiled: one a crop size.

    Raises:
        UsageError: no such mode.
    """
    if mode not in MODES:
        raise UsageError(f"the step must be one of {', '.join(MODES)}, not {mode!r}")
    if mode in ("graph", "compiled-graph") and device.type != "cuda":
        rest = "compiled" if mode == "compiled-graph" else "eager"
        return Choice(rest, f"only CUDA captures graphs, so the steps on {device.type} are {rest}")
    if mode != "auto":
        return Choice(mode)
    if device.type == "cuda":
        return Choice("graph", "steps are captured as CUDA graphs; not compiled, which has not been measured here")
    figures = MEASURED.get((device.type, dtype))
    if figures is None:
        return Choice("eager")
    if figures.pays(images, shapes):
        return Choice("compiled", f"compiling the network first, about {shapes * figures.seconds:.0f} s: it pays here")
    if figures.compiled < figures.eager:
        return Choice("eager")
    return Choice("eager", "not compiling the network: the run is too short for that to pay")
