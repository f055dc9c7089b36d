"""What a network costs: its parameters and its multiply-accumulates."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import MAX_PARAMETERS, MODELS, build_model


@dataclass(frozen=True)
class Cost:
    """The cost of one network.

    Attributes:
        model: its name in `MODELS`.
        parameters: trainable ones.
        multiply_accumulates: of convolutions and linear layers, for one 32x32 image; half of torch's count of
            floating-point operations.
    """

    model: str
    parameters: int
    multiply_accumulates: int

    @property
    def under_ceiling(self) -> bool:
        return self.parameters < MAX_PARAMETERS

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"under_ceiling": self.under_ceiling}


def cost(model: str) -> Cost:
    """The cost of the network of that name. Raises `ValueError` as `build_model` does."""
    network = build_model(model).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return Cost(model, sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)


def measure_all_costs() -> list[Cost]:
    """The cost of every network, in the order of `MODELS`."""
    return [cost(name) for name in MODELS]
