"""Compare a captured step with the eager step before it is used: from equal states to equal weights and loss."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Step = Callable[[Tensor], None]  # trains on the batch with these indices, int64 (B,)


class ReplayCheck:
    """Compare one replay with one eager step, twice, each time from the same state.

    The two trials differ in batch, learning rate and random numbers, so a captured graph in which any of them is
    constant fails at least one. A graph that skips the update or applies it twice fails both. All state is restored
    afterwards: a run trains to the same weights with and without the check.

    Args:
        tensors: returns everything that a step changes: weights, buffers, optimizer state, sums. A function, because
            optimizers create their state at the first step.
        sums: the running sums among `tensors`: loss and correct predictions, float32 (2,).
        learning_rates: the tensors () from which the step reads its learning rates, each with its highest value of the
            run; the trials use that value and half of it.
        dtype: number format of the forward pass. Rounding may differ from one execution to the next, because sums on
            a GPU have no fixed order; a third of the format's digits must agree. One wrong batch, rate, random number
            or update changes an update by half of its length or more.
    """

    def __init__(
        self,
        *,
        tensors: Callable[[], list[Tensor]],
        sums: Tensor,
        learning_rates: list[tuple[Tensor, float]],
        dtype: torch.dtype,
    ) -> None:
        self.tensors, self.sums, self.learning_rates = tensors, sums, learning_rates
        self.tolerance = torch.finfo(dtype).eps ** (1 / 3)  # 0.2 for bfloat16, 0.005 for float32

    def find_difference(self, replay: Step, eager: Step, indices: Tensor) -> str | None:
        """Describe the first difference between `replay` and `eager`; return None if there is none.

        Args:
            replay: replays the captured step.
            eager: runs the step eagerly.
            indices: a batch of the captured size; the second trial adds 1 to each index.
        """
        trials = ((indices, 1.0), ((indices + 1) % (indices.max() + 1), 0.5))
        for seed, (batch, share) in enumerate(trials):
            with self._temporary_state(seed, share):
                before = self._clones()
                replay(batch)
                replayed = self._clones()
            with self._temporary_state(seed, share):
                eager(batch)
                difference = self._compare(before, replayed)
            if difference:
                return difference
        return None

    def _clones(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors()]

    @contextmanager
    def _temporary_state(self, seed: int, share: float) -> Iterator[None]:
        """Seed the generators and set the learning rates to a share of the highest; put everything back at the end."""
        device = self.sums.device
        before, rates_before = self._clones(), [rate.clone() for rate, _ in self.learning_rates]
        for rate, highest in self.learning_rates:
            rate.fill_(share * highest)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
        with torch.no_grad():
            torch._foreach_copy_(self.tensors(), before)
            torch._foreach_copy_([rate for rate, _ in self.learning_rates], rates_before)

    def _compare(self, before: list[Tensor], replayed: list[Tensor]) -> str | None:
        """Compare the replay's changes with those that the eager step has just made."""
        for start, after_replay, tensor in zip(before, replayed, self.tensors(), strict=True):
            eager_change, difference = _norm(tensor - start), _norm(tensor - after_replay)
            rounding = 1e-5 * _norm(start)  # updates far below the weights' own rounding are not compared
            if not difference <= self.tolerance * eager_change + rounding:  # NaN compares false
                shape = f"a tensor of shape {tuple(tensor.shape)}"
                what = "the sum of losses and of correct predictions" if tensor is self.sums else shape
                return f"{what} changes by {eager_change:.3g}, and differs by {difference:.3g}"
        return None


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach().double()))
