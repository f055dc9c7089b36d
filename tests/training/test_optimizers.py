"""Muon against its definition by singular values, against a plain loop, and in every network."""

import pytest
import torch
import torch.nn.functional as F

from models import MODELS, build_model
from toolkit.recipes.recipe import Recipe
from toolkit.training.optimizers import Muon, make_optimizer, newton_schulz, normalize_weights, orthogonalize_all


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 27), (32, 288), (64, 576), (32, 16), (1, 9), (9, 1)])
def test_newton_schulz_keeps_singular_vectors_and_moves_singular_values_near_one(shape):
    matrix = random(*shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = u.mT @ newton_schulz(matrix[None])[0] @ vh.mT  # diagonal, if the singular vectors are unchanged
    torch.testing.assert_close(result, torch.diag(result.diagonal()), atol=1e-4, rtol=0)
    assert result.diagonal().min() > 0.6
    assert result.diagonal().max() < 1.25


def test_newton_schulz_does_not_depend_on_the_norm_and_maps_zero_to_zero():
    matrices = torch.stack([random(8, 20), torch.zeros(8, 20)])
    torch.testing.assert_close(newton_schulz(1e6 * matrices), newton_schulz(matrices), atol=1e-5, rtol=0)
    assert not newton_schulz(matrices)[1].any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_of_all_shapes_are_orthogonalized_as_matrices_one_by_one(memory_format):
    shapes = [(16, 3, 3, 3), (16, 16, 3, 3), (32, 16, 1, 1), (16, 16, 3, 3), (32, 16, 3, 3)]
    updates = [random(*shape, seed=seed).to(memory_format=memory_format) for seed, shape in enumerate(shapes)]
    for update, result in zip(updates, orthogonalize_all(updates), strict=True):
        assert result.shape == update.shape
        u, _, vh = torch.linalg.svd(update.reshape(len(update), -1), full_matrices=False)
        values = (u.mT @ result.reshape(len(update), -1) @ vh.mT).diagonal()
        torch.testing.assert_close(u @ torch.diag(values) @ vh, result.reshape(len(update), -1), atol=1e-4, rtol=0)
        assert 0.6 < values.min() <= values.max() < 1.25


def test_rescaling_gives_each_weight_the_norm_sqrt_out_channels():
    weights = [random(16, 3, 3, 3), 100 * random(32, 16, 1, 1)]
    directions = [weight / weight.norm() for weight in weights]
    normalize_weights(weights)
    for weight, direction in zip(weights, directions, strict=True):
        assert weight.norm().item() == pytest.approx(len(weight) ** 0.5)
        torch.testing.assert_close(weight / weight.norm(), direction)


def plain_step(parameters, buffers, *, rate, sgd_rate, momentum, weight_decay):
    """One step as the definition has it, parameter by parameter."""
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if parameter.ndim == 2:
            gradient = gradient + weight_decay * parameter.detach()
        buffers[name] = momentum * buffers.get(name, torch.zeros_like(gradient)) + gradient
        update = gradient + momentum * buffers[name]
        with torch.no_grad():
            if parameter.ndim == 4:
                parameter *= len(parameter) ** 0.5 / parameter.norm()
                parameter -= rate * newton_schulz(update.reshape(1, len(update), -1)).view_as(parameter)
            else:
                parameter -= sgd_rate * update


@pytest.mark.parametrize("model", MODELS)
def test_three_steps_of_each_network_agree_with_a_plain_loop(model):
    torch.manual_seed(0)
    network, twin = build_model(model, dropout_rate=0.0), build_model(model, dropout_rate=0.0)
    twin.load_state_dict(network.state_dict())
    network.to(memory_format=torch.channels_last)
    values = {"optimizer": "Muon", "learning_rate": 0.03, "sgd_learning_rate": 0.06}
    optimizer = make_optimizer(network, Recipe(**values, momentum=0.8, weight_decay=1e-2))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
    buffers = {}
    for step in range(3):
        images, labels = random(4, 3, 32, 32, seed=step), torch.arange(4)
        for each in (network, twin):
            each.zero_grad()
            F.cross_entropy(each(images), labels).backward()
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            parameter.grad = other.grad.clone(memory_format=torch.preserve_format)  # rounding must not accumulate
        optimizer.step()
        plain_step(dict(twin.named_parameters()), buffers, rate=0.03, sgd_rate=0.06, momentum=0.8, weight_decay=1e-2)
    for (name, parameter), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            parameter, other, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_each_parameter_of_a_network_is_in_one_group_and_only_the_linear_weight_decays():
    network = build_model("resnet20")
    groups = make_optimizer(network, Recipe(optimizer="Muon", learning_rate=0.02, weight_decay=0.1)).param_groups
    kinds = {id(p): type(m) for m in network.modules() for p in m.parameters(recurse=False)}
    assert [{kinds[id(p)] for p in group["params"] if p.ndim > 1} for group in groups] == [
        {torch.nn.Conv2d}, {torch.nn.Linear}, set(),
    ]  # fmt: skip
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1, 0.0]
    assert [group["lr_scale"] for group in groups] == [1.0, 5.0, 5.0]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, network.parameters()))


def test_parameters_without_gradients_stay_as_they_are():
    frozen, trained = torch.nn.Parameter(random(4, 3, 3, 3)), torch.nn.Parameter(random(4, 3, 3, 3))
    before = frozen.detach().clone()
    trained.grad = random(4, 3, 3, 3, seed=1)
    optimizer = Muon([{"params": [frozen, trained], "muon": True}], lr=0.1, momentum=0.9)
    optimizer.step()
    assert torch.equal(frozen, before)
    assert trained in optimizer.state
    assert frozen not in optimizer.state
