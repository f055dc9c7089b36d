"""Training steps as CUDA graphs: the first steps of a shape run eagerly, one is recorded, the rest are replayed.

A ResNet-20 step is hundreds of kernels of a few microseconds: launched one by one from Python, the device waits. A
graph launches them all at once. Random numbers stay fresh: a recorded graph reads the seed and the offset of the
device's default generator anew at each replay, and moves the offset on as the eager step does. That holds for
`torch._sample_dirichlet` too: by its source, its kernel takes the generator's state as rand's and dropout's do.

Written after torch's documentation and sources; it has not run on a GPU yet.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARM_UP_STEPS = 3  # as torch's documentation advises: libraries choose their algorithms and allocate their workspaces


class Recorder(Protocol):
    """What `CapturedStep` needs of the device; the tests have one that needs no GPU."""

    def run(self, work: Callable[[], None]) -> None:
        """Do the work now, where recording will happen too."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work without doing it; returns what does it. Raises RuntimeError where it cannot be recorded."""
        ...


class CudaGraphs:
    """Records on a side stream, as CUDA demands; eager steps run there as well, so that recording finds them set up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def run(self, work: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self.stream):
                    work()
            except BaseException:
                self._recover(current)
                raise
        return graph.replay

    def _recover(self, stream: torch.cuda.Stream) -> None:
        """A recording that failed may leave its own stream in place, and a generator that still believes in it."""
        torch.cuda.set_stream(stream)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())  # the same seed and offset, outside any recording


class CapturedStep:
    """Calls `step(indices, crop_size)`, by replay where it can.

    Warm-up steps are real steps of the run. A batch of another size than `batch_size`, which is an epoch's last one,
    always runs eagerly.

    Args:
        step: the whole step, augmentation to optimiser, without a wait for the device.
        batch_size: images in a full batch.
        device: where the indices lie.
        recorder: `CudaGraphs`, or the tests' stand-in.
        before_recording: called before each recording.
        note: told once when steps cannot be recorded; they then go on eagerly.
    """

    def __init__(
        self,
        step: Callable[[Tensor, int], None],
        *,
        batch_size: int,
        device: torch.device,
        recorder: Recorder,
        before_recording: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self.step, self.recorder, self.before_recording, self.note = step, recorder, before_recording, note
        self.indices = torch.zeros(batch_size, dtype=torch.int64, device=device)  # what the graphs read
        self.replays: dict[int, Callable[[], None]] = {}  # by crop size
        self.warmed_up: dict[int, int] = {}
        self.can_record = True

    def __call__(self, indices: Tensor, crop_size: int) -> None:
        if len(indices) != len(self.indices) or not self._recorded(crop_size):
            self.recorder.run(lambda: self.step(indices, crop_size))
            return
        self.indices.copy_(indices)
        self.replays[crop_size]()

    def _recorded(self, crop_size: int) -> bool:
        """Whether this shape can be replayed now; counts warm-up steps, and records when there were enough."""
        if crop_size in self.replays:
            return True
        if not self.can_record:
            return False
        if self.warmed_up.setdefault(crop_size, 0) < WARM_UP_STEPS:
            self.warmed_up[crop_size] += 1
            return False
        self.before_recording()
        try:
            self.replays[crop_size] = self.recorder.record(lambda: self.step(self.indices, crop_size))
        except RuntimeError as error:
            self.can_record = False
            self.note(f"the steps run one kernel at a time: they cannot be captured here ({first_line(error)})")
            return False
        return True


def first_line(error: Exception) -> str:
    """What went wrong, without the pages that compilers and CUDA add."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]
