"""The optimisers: SGD and Adam."""

import torch
from torch import nn

from toolkit.recipes.recipe import Recipe


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; weight decay acts on convolution and linear weights, not on biases or BatchNorm.

    The learning rate is a tensor, so that a step can change it without being compiled or captured anew.
    """
    decayed = [p for p in network.parameters() if p.ndim > 1]
    not_decayed = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    device = decayed[0].device
    learning_rate = torch.tensor(recipe.learning_rate, device=device)
    fused = device.type in ("cuda", "cpu")
    if recipe.optimizer == "Adam":
        capturable = device.type == "cuda"  # SGD's fused kernel needs no such word
        betas = (recipe.momentum, 0.999)
        return torch.optim.Adam(groups, lr=learning_rate, betas=betas, fused=fused, capturable=capturable)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)
