"""Figures from logits, against formulas written out one image at a time."""

import pytest
import torch
from PIL import Image

from models import build_model
from toolkit.data.channels import normalize
from toolkit.evaluation.metrics import compute_logits, measure
from toolkit.evaluation.plots import plot_confusion

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


def test_macro_accuracy_counts_every_class_with_images_once():
    logits = torch.eye(10)[[0] * 9 + [1]]  # nine of class a, all right; of classes b and c one each, only b's right
    metrics = measure(torch.cat([logits, torch.eye(10)[[0]]]), torch.tensor([0] * 9 + [1, 2]), NAMES)
    assert metrics.accuracy == pytest.approx(10 / 11)
    assert metrics.macro_accuracy == pytest.approx(2 / 3)
    assert metrics.top5_accuracy is None


def test_top5_accuracy_from_twenty_classes_on():
    logits = torch.arange(20.0).repeat(20, 1)  # the five best are always the classes 15 to 19
    metrics = measure(logits, torch.arange(20), tuple(f"class{number}" for number in range(20)))
    assert (metrics.accuracy, metrics.top5_accuracy) == (0.05, 0.25)
    assert metrics.as_dict()["top5_accuracy"] == 0.25


def test_the_most_confused_pairs_come_first():
    labels, predicted = torch.tensor([0, 0, 1, 2, 2]), [1, 1, 0, 2, 2]
    assert measure(torch.eye(10)[predicted], labels, NAMES).most_confused() == [("a", "b", 2), ("b", "a", 1)]


@pytest.mark.parametrize(("classes", "shape"), [(2, "square"), (20, "square"), (21, "wide"), (100, "wide")])
def test_the_confusion_picture_shows_a_matrix_or_pairs(classes, shape, tmp_path):
    names = tuple(f"${number}$ class" for number in range(classes))  # dollar signs are no formula
    labels = torch.arange(2 * classes) % classes
    predicted = (labels + (torch.arange(2 * classes) > classes).long()) % classes  # half of them wrong
    metrics = measure(torch.eye(classes)[predicted], labels, names)
    plot_confusion(metrics, tmp_path / "picture.png", title="test")
    width, height = Image.open(tmp_path / "picture.png").size
    assert ("wide" if abs(width / height - 8 / (1.5 + 0.28 * min(classes - 1, 30))) < 0.05 else "square") == shape
