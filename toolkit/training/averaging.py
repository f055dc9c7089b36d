"""An exponential moving average of the weights, updated after every step.

Not torch.optim.swa_utils.AveragedModel: it counts steps on the host, which a captured CUDA graph cannot do, and has no
warm-up of the decay.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def decay_of_step(decay: float, step: int) -> float:
    """The decay of a step, counted from 0: it rises to `decay`, so that the average soon forgets the initial weights.

    min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """A copy of a network whose weights are the moving average of the network's.

    BatchNorm's running statistics are averaged like the weights: that costs next to nothing, where computing them anew
    takes a pass over the training images for each validation. Counters are copied.

    Args:
        network: the network in training, on its device and in its layout; its weights must be changed in place only.
        decay: of the average, in [0, 1), once it has warmed up.

    Attributes:
        network: the average, in evaluation mode and without gradients.
        steps: how many it has seen.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0
        present, averaged = list(network.state_dict().values()), list(self.network.state_dict().values())
        self._weights = [value for value in present if value.is_floating_point()]
        self._averages = [value for value in averaged if value.is_floating_point()]
        self._counters = [value for value in present if not value.is_floating_point()]
        self._copies = [value for value in averaged if not value.is_floating_point()]
        self._share = torch.zeros((), device=self._weights[0].device)  # of the present weights in the new average

    def next_step(self) -> None:
        """Set the share of the coming step's weights: outside the step, which may be a graph that only reads it."""
        self._share.fill_(1 - decay_of_step(self.decay, self.steps))
        self.steps += 1

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now. Nothing here waits for the device, so it can be captured."""
        differences = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(differences, self._share)
        torch._foreach_add_(self._averages, differences)
        torch._foreach_copy_(self._copies, self._counters)

    def load(self, averages: Mapping[str, Tensor], *, steps: int) -> None:
        """Load saved averages: the state dict of `network`, and the number of steps."""
        self.network.load_state_dict(averages)
        self.steps = steps
