"""Training steps as CUDA graphs: the first steps of a shape run eagerly, one is recorded, the rest are replayed.

A ResNet-20 step is hundreds of kernels of a few microseconds: launched one by one from Python, they leave the device
idle most of the time. A graph launches them all at once. Random numbers stay fresh: a recorded graph reads the seed and
the offset of the device's default generator at each replay, and advances the offset as the eager step does.

Not yet run on a GPU. `replay_check` compares each recording with the eager step before it is used.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from toolkit.errors import first_line
from toolkit.reporting import Note
from toolkit.training.replay_check import ReplayCheck

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
    """Calls `step(indices, crop_size)`, by replay where possible.

    Warm-up steps are real steps of the run. A batch of another size than `batch_size`, an epoch's last one, always
    runs eagerly. A recording is used only after `check` has found that it does what the eager step does.

    Args:
        step: the whole step, augmentation to optimizer, without a wait for the device.
        batch_size: images in a full batch.
        device: where the indices are.
        recorder: `CudaGraphs`, or a stand-in for tests.
        check: compares a recording with the eager step.
        before_recording: called before each recording.
        note: called once with the reason if steps cannot be recorded or a recording fails the check; all further
            steps are then eager.
    """

    def __init__(
        self,
        step: Callable[[Tensor, int], None],
        *,
        batch_size: int,
        device: torch.device,
        recorder: Recorder,
        check: ReplayCheck,
        before_recording: Callable[[], None],
        note: Note,
    ) -> None:
        self.step, self.recorder, self.check = step, recorder, check
        self.before_recording, self.note = before_recording, note
        self.indices = torch.zeros(batch_size, dtype=torch.int64, device=device)  # the graphs read these
        self.replays: dict[int, Callable[[], None]] = {}  # by crop size
        self.warmed_up: dict[int, int] = {}
        self.can_record = True

    def __call__(self, indices: Tensor, crop_size: int) -> None:
        if len(indices) == len(self.indices) and self._ensure_recorded(indices, crop_size):
            self._replay(indices, crop_size)
        else:
            self._run_eagerly(indices, crop_size)

    def _replay(self, indices: Tensor, crop_size: int) -> None:
        self.indices.copy_(indices)
        self.replays[crop_size]()

    def _run_eagerly(self, indices: Tensor, crop_size: int) -> None:
        self.recorder.run(lambda: self.step(indices, crop_size))

    def _ensure_recorded(self, indices: Tensor, crop_size: int) -> bool:
        """Whether this crop size can be replayed now; counts warm-up steps, and records after enough of them."""
        if not self.can_record:
            return False
        if crop_size in self.replays:
            return True
        if self.warmed_up.setdefault(crop_size, 0) < WARM_UP_STEPS:
            self.warmed_up[crop_size] += 1
            return False
        self.before_recording()
        try:
            self.replays[crop_size] = self.recorder.record(lambda: self.step(self.indices, crop_size))
        except RuntimeError as error:
            return self._give_up(f"they cannot be captured here ({first_line(error)})")
        difference = self.check.find_difference(
            replay=lambda batch: self._replay(batch, crop_size),
            eager=lambda batch: self._run_eagerly(batch, crop_size),
            indices=indices,
        )
        if difference:
            return self._give_up(f"a replay did not do what the eager step does ({difference})")
        return True

    def _give_up(self, reason: str) -> bool:
        self.can_record = False
        self.replays.clear()
        self.note(f"steps run eagerly, one kernel at a time: {reason}")
        return False
