"""Figures from logits, against formulas written out one image at a time."""

import pytest
import torch

from models import build_model
from toolkit.data.channels import normalize
from toolkit.evaluation.metrics import compute_logits, measure

NAMES = tuple("abcdefghij")


def test_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 10, generator=generator)
    labels = torch.randint(0, 10, (500,), generator=generator)
    metrics = measure(logits, labels, NAMES)

    confusion = [[0] * 10 for _ in range(10)]
    bins = [[] for _ in range(15)]
    for row, label in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True):
        predicted = max(range(10), key=row.__getitem__)
        confusion[label][predicted] += 1
        bins[min(int(row[predicted] * 15), 14)].append((row[predicted], predicted == label))
    gaps = [abs(sum(c for c, _ in b) / len(b) - sum(r for _, r in b) / len(b)) * len(b) for b in bins if b]
    assert [list(row) for row in metrics.confusion] == confusion
    assert metrics.correct == sum(confusion[i][i] for i in range(10))
    assert metrics.accuracy == metrics.correct / 500
    assert metrics.per_class_accuracy["c"] == confusion[2][2] / sum(confusion[2])
    assert metrics.calibration_error == pytest.approx(sum(gaps) / 500, abs=1e-6)
    assert metrics.loss == pytest.approx(torch.nn.CrossEntropyLoss()(logits, labels).item())


def test_sure_and_right_is_perfect_calibration():
    labels = torch.arange(10)
    metrics = measure(100 * torch.eye(10), labels, NAMES)
    assert (metrics.accuracy, metrics.calibration_error) == (1.0, 0.0)


def test_a_class_without_images_has_no_accuracy():
    assert measure(torch.eye(10)[:3], torch.arange(3), NAMES).per_class_accuracy["j"] is None


def test_logits_of_the_network_in_evaluation_mode():
    torch.manual_seed(0)
    network = build_model("resnet20").train()
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    logits = compute_logits(network, images, batch_size=3)
    assert network.training
    with torch.no_grad():
        torch.testing.assert_close(logits, network.eval()(normalize(images)), atol=1e-4, rtol=1e-4)
