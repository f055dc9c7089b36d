"""The networks: sizes as designed, every weight in use."""

import pytest
import torch
import torch.nn.functional as F

from models import MAX_PARAMETERS, MODELS, build_model
from models.cost import cost, measure_all_costs

PARAMETERS = {"resnet20": 272_474, "resnet20-wide": 424_910, "resnet32": 466_906, "m6": 696_618}


def test_every_network_has_a_count_here():
    assert set(PARAMETERS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count(name):
    assert sum(p.numel() for p in build_model(name).parameters() if p.requires_grad) == PARAMETERS[name]
    assert cost(name).parameters == PARAMETERS[name]


def test_only_m6_is_over_the_ceiling():
    assert MAX_PARAMETERS == 600_000
    assert [c.model for c in measure_all_costs() if not c.under_ceiling] == ["m6"]


def test_multiply_accumulates_by_hand():
    """Layer by layer: kernel area x channels in x channels out x pixels out."""
    stem = 9 * 3 * 16 * 1024
    stage1 = 6 * 9 * 16 * 16 * 1024
    stage2 = 9 * 16 * 32 * 256 + 16 * 32 * 256 + 5 * 9 * 32 * 32 * 256
    stage3 = 9 * 32 * 64 * 64 + 32 * 64 * 64 + 5 * 9 * 64 * 64 * 64
    assert cost("resnet20").multiply_accumulates == stem + stage1 + stage2 + stage3 + 640


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    network = build_model(name)
    F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3])).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_convolutions_have_no_bias():
    assert all(m.bias is None for m in build_model("resnet20").modules() if isinstance(m, torch.nn.Conv2d))


def test_a_handful_of_images_is_memorised():
    torch.manual_seed(0)
    network = build_model("resnet20", dropout_rate=0.0)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (network(images).argmax(1) == labels).all()


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'resnet50'.*resnet20, resnet20-wide, resnet32, m6"):
        build_model("resnet50")
