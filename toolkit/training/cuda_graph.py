"""Training steps as CUDA graphs: the first steps of each shape run eagerly, one is captured, the rest are replayed.

A ResNet-20 step is hundreds of kernels of a few microseconds: launched one by one from Python, they leave the device
idle most of the time. A graph launches them all at once. Each replay draws new random numbers: a captured graph reads
the seed and the offset of the device's default generator, and advances the offset as the eager step does.

Not yet run on a GPU. `replay_check` compares each captured graph with the eager step before it is used.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from toolkit.errors import first_line
from toolkit.reporting import Note
from toolkit.training.replay_check import ReplayCheck

WARM_UP_STEPS = 3  # as torch's documentation advises: libraries choose their algorithms and allocate their workspaces


class GraphCapturer(Protocol):
    """Runs and captures work on a device. The tests have an implementation that needs no GPU."""

    def run(self, work: Callable[[], None]) -> None:
        """Run the work now, on the stream on which it will be captured."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work without running it; return a function that runs it. Raises RuntimeError if that fails."""
        ...


class CudaGraphCapturer:
    """Captures on a side stream, as CUDA requires. Eager steps run on it too, so that they warm it up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def run(self, work: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
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
        """Restore the current stream, and a generator state outside of any capture, after a capture failed."""
        torch.cuda.set_stream(stream)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())  # the same seed and offset


class CapturedStep:
    """Run `step(indices, crop_size)`, by replaying a captured graph where possible.

    Warm-up steps are real steps of the run. A batch smaller than `batch_size`, at the end of an epoch, always runs
    eagerly. A captured graph is used only after `check` has found no difference from the eager step.

    Args:
        step: the whole step, augmentation to optimizer, without synchronization with the device.
        batch_size: images in a full batch.
        device: where the indices are.
        capturer: `CudaGraphCapturer`, or a stand-in for tests.
        check: compares a captured graph with the eager step.
        before_capture: called before each capture.
        note: called once with the reason if a capture or its check fails; all further steps are then eager.
    """

    def __init__(
        self,
        step: Callable[[Tensor, int], None],
        *,
        batch_size: int,
        device: torch.device,
        capturer: GraphCapturer,
        check: ReplayCheck,
        before_capture: Callable[[], None],
        note: Note,
    ) -> None:
        self.step, self.capturer, self.check = step, capturer, check
        self.before_capture, self.note = before_capture, note
        self.indices = torch.zeros(batch_size, dtype=torch.int64, device=device)  # the graphs read these
        self.replays: dict[int, Callable[[], None]] = {}  # by crop size
        self.warmed_up: dict[int, int] = {}
        self.can_capture = True

    def __call__(self, indices: Tensor, crop_size: int) -> None:
        if len(indices) == len(self.indices) and self._ensure_captured(indices, crop_size):
            self._replay(indices, crop_size)
        else:
            self._run_eagerly(indices, crop_size)

    def _replay(self, indices: Tensor, crop_size: int) -> None:
        self.indices.copy_(indices)
        self.replays[crop_size]()

    def _run_eagerly(self, indices: Tensor, crop_size: int) -> None:
        self.capturer.run(lambda: self.step(indices, crop_size))

    def _ensure_captured(self, indices: Tensor, crop_size: int) -> bool:
        """Count warm-up steps, and capture the step after them; return whether this crop size can be replayed now."""
        if not self.can_capture:
            return False
        if crop_size in self.replays:
            return True
        if self.warmed_up.setdefault(crop_size, 0) < WARM_UP_STEPS:
            self.warmed_up[crop_size] += 1
            return False
        self.before_capture()
        try:
            self.replays[crop_size] = self.capturer.capture(lambda: self.step(self.indices, crop_size))
        except RuntimeError as error:
            return self._give_up(f"they cannot be captured here ({first_line(error)})")
        difference = self.check.find_difference(
            replay=lambda batch: self._replay(batch, crop_size),
            eager=lambda batch: self._run_eagerly(batch, crop_size),
            indices=indices,
        )
        if difference:
            return self._give_up(f"a replay differed from the eager step ({difference})")
        return True

    def _give_up(self, reason: str) -> bool:
        self.can_capture = False
        self.replays.clear()
        self.note(f"steps run eagerly, one kernel at a time: {reason}")
        return False
