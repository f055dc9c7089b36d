"""What a terminal and a log show: plain lines where there is no terminal, an estimate where a run is long."""

import pytest

from toolkit import display
from toolkit.deploy.report import Check, Figures, Report
from toolkit.display import TrainingDisplay, download_bar, metrics_lines, report_lines
from toolkit.evaluation.metrics import Metrics
from toolkit.recipes.recipe import Recipe
from toolkit.training.trainer import EpochRecord


def record(epoch: int, val_accuracy: float | None = 0.5) -> EpochRecord:
    loss = None if val_accuracy is None else 1.5
    return EpochRecord(epoch, 0.05, 1.25, 0.4321, loss, val_accuracy, seconds=90.0, images_per_second=512.3)


def test_a_line_for_each_epoch_where_there_is_no_terminal(capsys):
    with TrainingDisplay(Recipe(epochs=10), suggest_fast=True) as shown:
        shown.step(32, 100)
        shown.epoch(record(3))
        shown.epoch(record(10, val_accuracy=None))
    captured = capsys.readouterr()
    assert captured.out == ""
    header, third, last = captured.err.splitlines()
    assert " ".join(header.split()) == "epoch loss train acc val acc learning rate images/s time left"
    assert " ".join(third.split()) == "3/10 1.250 43.21% 50.00% 0.05000 512 10 min 30 s"
    assert " ".join(last.split()) == "10/10 1.250 43.21% - 0.05000 512 0 s"
    assert "\x1b" not in captured.err


LONG_AND_SHORT_RUNS = [(True, 10, (True, True)), (False, 10, (True, False)), (True, 1e9, (False, False))]


@pytest.mark.parametrize(("suggest", "rate", "said"), LONG_AND_SHORT_RUNS)
def test_a_long_run_says_so_and_names_the_shorter_preset(capsys, monkeypatch, suggest, rate, said):
    clock = iter(range(1000))
    monkeypatch.setattr(display.time, "perf_counter", lambda: float(next(clock)))
    with TrainingDisplay(Recipe(), suggest_fast=suggest) as shown:
        for number in range(20):
            shown.step(int(rate * number) + 1, 10**9)
    text = capsys.readouterr().err
    assert ("will take about" in text, "cifar train --recipe fast" in text) == said


def test_time_left_knows_that_small_crops_cost_less(capsys):
    augmentation = {"small_crop_size": 16, "small_crop_share": 0.5}
    with TrainingDisplay(Recipe.from_dict({"epochs": 4, "data_augmentation": augmentation})) as shown:
        for epoch in (1, 2, 3):
            shown.epoch(record(epoch))  # of 90 seconds
    ends = [line.split("512")[1].strip() for line in capsys.readouterr().err.splitlines()[1:]]
    assert ends == ["13 min 30 s", "12 min 00 s", "1 min 30 s"]


def test_epochs_of_one_step_do_not_divide_by_zero(monkeypatch):
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(display.time, "perf_counter", lambda: float(next(clock)))
    shown = TrainingDisplay(Recipe())
    for _ in range(3):
        shown.step(100, 100)


def test_a_download_names_its_source_once(capsys):
    with download_bar() as progress:
        for done in range(0, 100, 10):
            progress("example.org", done, 100)
    assert capsys.readouterr().err == "example.org\n"


def test_metrics_as_lines():
    confusion = tuple(tuple(5 if i == j else 0 for j in range(10)) for i in range(10))
    text = metrics_lines(Metrics(50, 50, 0.1, 0.02, confusion, tuple("abcdefghij")))
    assert "100.00% (50 of 50 images)" in text
    assert len(text.splitlines()) == 15


def test_a_report_keeps_what_looks_like_markup():
    checks = (
        Check("shape", "[3]", "[/bold]", False),
        Check("logits", "1e-5", "1e-3", True),
        Check("x", "y", "z", None),
    )
    text = report_lines(Report(passed=False, checks=checks, figures=Figures("cpu", 0.91, 1, "")))
    rows = [line.split() for line in text.splitlines()]
    assert rows[1] == ["shape", "[3]", "[/bold]", "REJECTED"]
    assert [row[-1] for row in rows[2:]] == ["passed", "reported"]
