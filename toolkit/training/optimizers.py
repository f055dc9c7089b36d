"""The optimizers of a recipe: SGD and Adam from torch, Muon for convolutions here."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.recipes.recipe import Recipe

NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: chosen for a steep slope at zero


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer.

    Weight decay acts on convolution and linear weights (under Muon on the linear weights alone), not on biases or
    BatchNorm. Each parameter group has "lr_scale": its learning rate as a multiple of the recipe's.
    """
    weights = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    device = weights[0].device
    if recipe.optimizer == "Muon":
        convolutions = [p for p in weights if p.ndim == 4]
        linear = [p for p in weights if p.ndim != 4]
        sgd_scale = recipe.sgd_learning_rate / recipe.learning_rate
        groups = [
            {"params": convolutions, "muon": True, "weight_decay": 0.0, "lr_scale": 1.0},
            {"params": linear, "muon": False, "weight_decay": recipe.weight_decay, "lr_scale": sgd_scale},
            {"params": vectors, "muon": False, "weight_decay": 0.0, "lr_scale": sgd_scale},
        ]
        return Muon(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay, "lr_scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    learning_rate = torch.tensor(recipe.learning_rate, device=device)
    fused = device.type in ("cuda", "cpu")
    if recipe.optimizer == "Adam":
        capturable = device.type == "cuda"  # SGD has no such option, and needs none
        betas = (recipe.momentum, 0.999)
        return torch.optim.Adam(groups, lr=learning_rate, betas=betas, fused=fused, capturable=capturable)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)


class Muon(torch.optim.Optimizer):
    """Muon for convolution weights, SGD with Nesterov momentum for everything else.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), and the form that
    Keller Jordan's cifar10-airbench (airbench94_muon.py) gives it for convolutions that are followed by BatchNorm:
    each weight is rescaled to the norm sqrt(out channels) before the update. BatchNorm makes the network independent
    of that norm, so the rescaling replaces weight decay.

    torch.optim.Muon takes matrices only, orthogonalizes them one by one, and does not rescale.

    A step never synchronizes with the device, so it can be compiled and captured in a CUDA graph.

    Args:
        params: parameter groups. A group with "muon": True holds convolution weights, (out, in, k, k); the other
            groups hold parameters of any shape.
        lr: the learning rate of groups that have none of their own; a number or a tensor ().
        momentum: in [0, 1), of both methods.
    """

    def __init__(self, params: Any, *, lr: float | Tensor, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "muon": False, "lr_scale": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient.

        Raises:
            ValueError: a closure was given; this optimizer does not evaluate the loss.
        """
        if closure is not None:
            raise ValueError("Muon.step takes no closure: compute the loss and its gradients before the step")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            if group["weight_decay"] > 0:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            updates = self._with_nesterov_momentum(parameters, gradients, group["momentum"])
            if group["muon"]:
                updates = orthogonalize_all(updates)
                normalize_weights(parameters)
            torch._foreach_mul_(updates, group["lr"])
            torch._foreach_sub_(parameters, updates)

    def _with_nesterov_momentum(
        self, parameters: list[Tensor], gradients: list[Tensor], momentum: float
    ) -> list[Tensor]:
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))


def normalize_weights(weights: list[Tensor]) -> None:
    """Scale each weight (out, in, k, k) in place to Frobenius norm sqrt(out).

    The norms of the output channels then have a root mean square of 1.
    """
    norms = torch._foreach_norm(weights)
    factors = torch._foreach_reciprocal(torch._foreach_maximum(norms, 1e-12))
    torch._foreach_mul_(factors, [math.sqrt(len(weight)) for weight in weights])
    torch._foreach_mul_(weights, factors)


def orthogonalize_all(updates: list[Tensor]) -> list[Tensor]:
    """Replace each (out, in, k, k) by the nearest semi-orthogonal (out, in * k * k), approximately.

    Updates of equal shape are orthogonalized as one batch. The columns are in channels_last memory order:
    orthogonalization commutes with permutations of the columns, so their order does not matter.

    Returns:
        Tensors of the same shapes, in channels_last layout.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        by_shape[tuple(update.shape)].append(index)
    results: dict[int, Tensor] = {}
    for (out, channels, height, width), indices in by_shape.items():
        matrices = torch.stack([updates[index].permute(0, 2, 3, 1).reshape(out, -1) for index in indices])
        orthogonal = newton_schulz(matrices).view(len(indices), out, height, width, channels).permute(0, 1, 4, 2, 3)
        results.update(zip(indices, orthogonal.unbind(), strict=True))
    return [results[index] for index in range(len(updates))]


def newton_schulz(matrices: Tensor) -> Tensor:
    """Move all singular values of each matrix near 1 by Newton-Schulz steps, keeping the singular vectors.

    Five steps map singular values above about 1.5e-3 of the Frobenius norm to between 0.68 and 1.2; smaller ones end
    lower. Source: Jordan et al. 2024.

    Args:
        matrices: float (B, M, N).

    Returns:
        The same shape and dtype.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT  # wide, so that the Gram matrix is small
    x: Tensor = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT  # (B, M, M)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT
