"""What terminals and files show: whole outputs at the widths of 80 and 120 characters, and the live line on a pty."""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from models.cost import Cost
from tests.support.sources import ROOT
from toolkit import display
from toolkit.data.dataset import DataStatus
from toolkit.data.overview import DataOverview
from toolkit.data.picture_set import Findings
from toolkit.data.report import ClassCounts, DataReport
from toolkit.deploy.report import Check, Figures, Report
from toolkit.display import TrainingDisplay, data_callbacks, download_bar, jobs_bar
from toolkit.doctor import Finding
from toolkit.evaluation.evaluate import SeedsMetrics
from toolkit.evaluation.metrics import Metrics
from toolkit.recipes.recipe import Recipe
from toolkit.reporting import silence
from toolkit.runs.seeds import SeedRuns
from toolkit.training.trainer import EpochRecord

EPOCH = EpochRecord(3, 0.05, 1.25, 0.4321, 1.5, 0.5, seconds=90.0, images_per_second=512.3)
SIGNATURE = "images uint8 (batch, 32, 32, 3) -> logits float32 (batch, 10), probabilities float32 (batch, 10)"
REPORT = Report(
    passed=False,
    checks=(
        Check("file size", "1,097,012 bytes", "at most 67,108,864 bytes", True),
        Check("interface", SIGNATURE, SIGNATURE, True),
        Check("precision", "[bold]fp32[/bold] :cat:", "sets the limits below", None),
        Check("accuracy", "9,099 of 10,000 right", "at least 9,100 (0.91)", False),
    ),
    figures=Figures("cpu", 0.91, 1_097_012, ""),
)
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEN_CLASSES = Metrics(
    images=9950,
    correct=9000,
    loss=0.23456,
    calibration_error=0.0258,
    confusion=(*((0,) * (i - 1) + (50,) * (i > 0) + (1000,) + (0,) * (9 - i) for i in range(9)), (0,) * 10),
    class_names=NAMES,
)
MANY_CLASSES = Metrics(
    images=1050,
    correct=950,
    loss=1.5,
    calibration_error=0.1,
    confusion=tuple(tuple(10 - (i % 3) if i == j else i % 3 * (j == 0) for j in range(105)) for i in range(105)),
    class_names=tuple(f"class{number}" for number in range(105)),
    top5_correct=1000,
)
RUN = {
    "model": "resnet20",
    "parameters": 272_474,
    "epochs": 100,
    "best": {"epoch": 97, "validation": {"accuracy": 0.923, "macro_accuracy": 0.92}},
    "last": {"train_accuracy": 0.977, "val_accuracy": 0.921, "generalisation_gap": 0.056},
    "training_seconds": 2996.2,
    "device": "AMD EPYC 9B14, 2 threads",
}
SEEDS = {
    "n": 2,
    "model": "resnet20",
    "parameters": 272_474,
    "figures": {"train_accuracy": {"mean": 0.975, "std": None, "min": 0.97}},
    "seeds": [
        {"seed": 0, "train_accuracy": 0.97, "training_seconds": 61.0},
        {"seed": 1, "train_accuracy": 0.98, "training_seconds": 7321.0},
    ],
}
SEEDS_METRICS = SeedsMetrics(
    SeedRuns(Path("runs/fast"), 2), (40, 39), (TEN_CLASSES, replace(TEN_CLASSES, correct=9001))
)
FINDINGS = (
    Finding("torch", "2.14.1, built for CUDA 13.0"),
    Finding("provider cuda", "no NVIDIA driver", None, 'with an NVIDIA GPU here: pip install "onnxruntime-gpu[cuda]"'),
    Finding("shipped model", "model.onnx is damaged", False, "install the toolkit again"),
)
DATA = DataStatus(
    "cifar10", "--data", Path("/data"), {"data_batch_1": "ok", "test_batch\x1b": "missing"}, train_count=0, test_count=0
)
LONG_PATH = Path(
    "/home/somebody/a-folder-with-a-long-name/another-folder-with-a-long-name/cifar/runs/fast-resnet20-seed0"
)


def columns(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "output_width", lambda: width)


@pytest.fixture(params=[80, 120])
def width(request, monkeypatch):
    columns(request.param, monkeypatch)
    return request.param


REPORT_TEXT = {
    80: """\
check      found                         limit                          outcome
file size  1,097,012 bytes               at most 67,108,864 bytes       passed
interface  images uint8 (batch, 32, 32,  images uint8 (batch, 32, 32,   passed
           3) -> logits float32 (batch,  3) -> logits float32 (batch,
           10), probabilities float32    10), probabilities float32
           (batch, 10)                   (batch, 10)
precision  [bold]fp32[/bold] :cat:       sets the limits below          reported
accuracy   9,099 of 10,000 right         at least 9,100 (0.91)          REJECTED
""",
    120: """\
check      found                                             limit                                              outcome
file size  1,097,012 bytes                                   at most 67,108,864 bytes                           passed
interface  images uint8 (batch, 32, 32, 3) -> logits         images uint8 (batch, 32, 32, 3) -> logits float32  passed
           float32 (batch, 10), probabilities float32        (batch, 10), probabilities float32 (batch, 10)
           (batch, 10)
precision  [bold]fp32[/bold] :cat:                           sets the limits below                              reported
accuracy   9,099 of 10,000 right                             at least 9,100 (0.91)                              REJECTED
""",
}


def test_gate_report(width):
    assert display.report_lines(REPORT) + "\n" == REPORT_TEXT[width]


def test_metrics_of_ten_classes_show_the_matrix(width):
    expected = """\
Accuracy            90.45% (9,000 of 9,950 images)
Macro accuracy      95.77% (mean over classes)
Loss                0.2346 nats
Calibration error   0.0258

Confusion matrix: a row per true class, a column per predicted class

true class   accuracy    0    1    2    3    4    5    6    7    8 9
0 airplane    100.00% 1000    0    0    0    0    0    0    0    0 0
1 automobile   95.24%   50 1000    0    0    0    0    0    0    0 0
2 bird         95.24%    0   50 1000    0    0    0    0    0    0 0
3 cat          95.24%    0    0   50 1000    0    0    0    0    0 0
4 deer         95.24%    0    0    0   50 1000    0    0    0    0 0
5 dog          95.24%    0    0    0    0   50 1000    0    0    0 0
6 frog         95.24%    0    0    0    0    0   50 1000    0    0 0
7 horse        95.24%    0    0    0    0    0    0   50 1000    0 0
8 ship         95.24%    0    0    0    0    0    0    0   50 1000 0
9 truck             -    0    0    0    0    0    0    0    0    0 0
"""
    assert display.metrics_lines(TEN_CLASSES) + "\n" == expected


MANY_CLASSES_TEXT = """\
Accuracy            90.48% (950 of 1,050 images)
Macro accuracy      90.00% (mean over classes)
Top-5 accuracy      95.24%
Loss                1.5000 nats
Calibration error   0.1000

Lowest accuracies, 10 of 105 classes (--json gives all)
true class  accuracy
class101      80.00%
class104      80.00%
class11       80.00%
class14       80.00%
class17       80.00%
class2        80.00%
class20       80.00%
class23       80.00%
class26       80.00%
class29       80.00%

Most confused pairs, 10 of 70
true class  predicted class  images
class2      class0                2
class5      class0                2
class8      class0                2
class11     class0                2
class14     class0                2
class17     class0                2
class20     class0                2
class23     class0                2
class26     class0                2
class29     class0                2
"""


def test_metrics_of_many_classes_show_the_lowest_accuracies_and_the_most_confused_pairs(width):
    assert display.metrics_lines(MANY_CLASSES) + "\n" == MANY_CLASSES_TEXT


def test_a_matrix_wider_than_the_terminal_is_replaced(monkeypatch):
    columns(60, monkeypatch)
    text = display.metrics_lines(TEN_CLASSES)
    assert "Most confused pairs, 8 of 8\n" in text
    assert max(map(len, text.splitlines())) <= 60


def test_metrics_without_an_error(width):
    metrics = replace(MANY_CLASSES, confusion=tuple(tuple(int(i == j) for j in range(105)) for i in range(105)))
    assert display.metrics_lines(metrics).endswith("\n\nNo image was assigned to a wrong class")


def test_run_summary_wraps_between_words(monkeypatch):
    columns(80, monkeypatch)
    expected = """\
Run          /home/somebody/a-folder-with-a-long-name/another-folder-with-a-long-name/cifar/runs/fast-resnet20-seed0
Model        resnet20, 272,474 parameters
Best epoch   97, validation accuracy 92.30%, macro 92.00%
Last epoch   100, validation accuracy 92.10%, training accuracy 97.70%,
             generalization gap 5.60 points
Time         49 min 56 s of training on AMD EPYC 9B14, 2 threads
"""
    assert display.run_lines(LONG_PATH, RUN) + "\n" == expected


def test_run_summary_on_a_wide_terminal_and_without_validation(monkeypatch):
    columns(120, monkeypatch)
    run = RUN | {"best": {"epoch": 100, "validation": None}}
    expected = """\
Run          runs/a
Model        resnet20, 272,474 parameters
Last epoch   100, training accuracy 97.70%
Validation   none: trained on all images, so the last epoch is kept
Time         49 min 56 s of training on AMD EPYC 9B14, 2 threads
"""
    assert display.run_lines(Path("runs/a"), run) + "\n" == expected


def test_seeds_of_a_run(width):
    expected = """\
2 seeds of resnet20, 272,474 parameters, in runs/fast
seed     train acc        time
0           97.00%  1 min 01 s
1           98.00%  2 h 02 min
mean        97.50%
std              -
minimum     97.00%
"""
    assert display.seeds_lines(Path("runs/fast"), SEEDS) + "\n" == expected


def test_test_accuracy_of_each_seed(width):
    expected = """\
seed     test acc  correct  epoch
0          90.45%    9,000     40
1          90.46%    9,001     39
mean       90.46%
std         0.01%
minimum    90.45%
"""
    assert display.seeds_metrics_lines(SEEDS_METRICS) + "\n" == expected


def test_models(width):
    costs = [Cost("resnet20", 272_474, 41_214_592), Cost("m6", 692_874, 90_000_000)]
    expected = """\
model     parameters  multiply-accumulates  under 600,000 parameters
resnet20     272,474            41,214,592                       yes
m6           692,874            90,000,000                        no
"""
    assert display.models_lines(costs) + "\n" == expected


DOCTOR_TEXT = {
    80: """\
ok  torch           2.14.1, built for CUDA 13.0
--  provider cuda   no NVIDIA driver
                    -> with an NVIDIA GPU here: pip install
                    "onnxruntime-gpu[cuda]"
BAD shipped model   model.onnx is damaged
                    -> install the toolkit again
""",
    120: """\
ok  torch           2.14.1, built for CUDA 13.0
--  provider cuda   no NVIDIA driver
                    -> with an NVIDIA GPU here: pip install "onnxruntime-gpu[cuda]"
BAD shipped model   model.onnx is damaged
                    -> install the toolkit again
""",
}


def test_doctor(width):
    assert display.doctor_lines(FINDINGS) + "\n" == DOCTOR_TEXT[width]


def overview(status, report=None):
    return DataOverview(None, status, report)


def test_findings_on_a_terminal_narrower_than_their_labels(monkeypatch):
    columns(12, monkeypatch)
    assert "shipped model" in display.doctor_lines(FINDINGS)


def test_data_that_is_incomplete(width):
    expected = """\
cifar10 in /data (chosen by --data)
file            state
data_batch_1    ok
test_batch\x1b  missing
"""
    assert display.data_lines(overview(DATA)) + "\n" == expected.replace("\x1b", r"\x1b")


def test_data_that_is_complete(width):
    status = replace(DATA, files={"test_batch": "ok"}, train_count=50_000, test_count=10_000)
    assert display.data_lines(overview(status)).splitlines()[1:] == ["every MD5 checksum right"]


def test_drawn_data(width):
    status = DataStatus("demo", "--data", None, {}, 4000, 1000)
    assert display.data_lines(overview(status)) == "demo: synthetic pictures, generated on demand"


def test_a_folder_of_pictures_with_its_classes_and_remarks(width):
    status = DataStatus("pictures", "--data", Path("/pets"), {}, None, None)
    rows = (ClassCounts("cat", 100, 0, 20, 100 / 103), ClassCounts("dog\x1b", 3, 0, 0, 3 / 103))
    findings = Findings(removed_from_train=1, small=2)
    report = DataReport("pictures", Path("/pets"), rows, findings, imbalance=100 / 3)
    expected = """\
pictures in /pets (chosen by --data)

class    training  validation  test  share
cat           100           0    20  97.1%
dog\\x1b         3           0     0   2.9%
all           103           0    20

removed 1 training picture identical to a picture held out
2 pictures with a shorter side below 32 pixels: enlarged, hence blurred
without test pictures: dog\\x1b
the largest class has 33 times the training pictures of the smallest
"""
    assert display.data_lines(overview(status, report)) + "\n" == expected


def test_a_file_gets_a_fixed_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert display.output_width() == display.FILE_WIDTH == 100


def test_training_writes_a_line_per_epoch_to_a_file(capsys):
    with TrainingDisplay(Recipe(epochs=10), suggest_fast=True) as shown:
        shown.step(32, 100)
        shown.epoch(EPOCH)
        shown.note("a note " + 20 * "that stays whole ")
        shown.epoch(replace(EPOCH, epoch=10, val_accuracy=None, val_loss=None))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[2] == "a note " + 20 * "that stays whole "
    assert [*lines[:2], *lines[3:]] == [
        "  epoch    loss  train acc  val acc  learning rate   images/s     run left",
        "   3/10   1.250     43.21%   50.00%        0.05000        512       10 min",
        "  10/10   1.250     43.21%        -        0.05000        512          0 s",
    ]


def test_time_left_counts_small_crops_as_cheaper(capsys):
    augmentation = {"small_crop_size": 16, "small_crop_share": 0.5}
    with TrainingDisplay(Recipe.from_dict({"epochs": 4, "data_augmentation": augmentation})) as shown:
        for epoch in (1, 2, 3):
            shown.epoch(replace(EPOCH, epoch=epoch))  # of 90 seconds
    ends = [line.split("512")[1].strip() for line in capsys.readouterr().err.splitlines()[1:]]
    assert ends == ["14 min", "12 min", "90 s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (12.4, "12 s"), (99, "99 s"), (100, "2 min"), (2996, "50 min"), (5990, "1 h 40 min"),
     (7190, "2 h 00 min"), (36_000, "10 h"), (100_000, "28 h")],
)  # fmt: skip
def test_estimates_have_two_figures(seconds, text):
    assert display._estimate(seconds) == text


@pytest.mark.parametrize(
    ("suggest", "images_per_second", "expected"),
    [
        (
            True,
            10_000,
            "This run will take about 2 h 20 min on this machine.\n"
            "A shorter way to 91% is the preset `fast`: cifar train --recipe fast --val-size 0\n",
        ),
        (False, 10_000, "This run will take about 2 h 20 min on this machine.\n"),
        (True, 10**9, ""),
    ],
)
def test_a_long_run_is_announced_once(capsys, monkeypatch, suggest, images_per_second, expected):
    clock = iter(range(1000))
    monkeypatch.setattr(display.time, "perf_counter", lambda: float(next(clock)))
    shown = TrainingDisplay(Recipe(epochs=72), suggest_fast=suggest)
    for second in range(20):
        shown.step(images_per_second * second + 1, 10**6)
    assert capsys.readouterr().err == expected


def test_epochs_of_one_step_do_not_divide_by_zero(monkeypatch):
    monkeypatch.setattr(display.time, "perf_counter", lambda: 1.0)
    shown = TrainingDisplay(Recipe())
    for _ in range(3):
        shown.step(100, 100)


def test_a_download_names_its_source_once(capsys):
    with download_bar() as progress:
        for done in range(0, 100, 10):
            progress("example.org", done, 100)
    assert capsys.readouterr().err == "example.org\n"


def test_a_silenced_command_shows_no_progress(capsys):
    with (
        silence(),
        data_callbacks(print) as callbacks,
        jobs_bar("epochs") as progress,
        TrainingDisplay(Recipe()) as shown,
    ):
        callbacks["progress"]("example.org", 10, 100)
        callbacks["on_pictures"](10, 100)
        progress(5, 10)
        shown.note("a note")
    assert capsys.readouterr() == ("", "")


# Two epochs in a process of its own, whose terminal is a pty; without torch, so that it starts at once.
TWO_EPOCHS = """
import sys, time, types
from types import SimpleNamespace
schedule = types.ModuleType("schedule")
schedule.choose_crop_size = lambda recipe, epoch: 32
sys.modules["toolkit.recipes.schedule"] = schedule
from toolkit import display
print("width", display.output_width())
with display.TrainingDisplay(SimpleNamespace(epochs=150)) as shown:
    for epoch in (149, 150):
        shown._epochs_done = epoch - 1
        for done in range(100, 600, 100):
            shown.step(done, 1_000_000 if done < 500 else 500)
            time.sleep(0.12)
        shown.epoch(SimpleNamespace(epoch=epoch, train_loss=1.25, train_accuracy=0.4, val_accuracy=0.5,
                                    learning_rate=0.05, images_per_second=1000.0, seconds=1.0))
    shown.note("a note of several words " * 6)
"""


def run_on_a_terminal(code, *, width):
    """Run Python code in a process on a terminal of that width; return the lines written, without control sequences."""
    pty = pytest.importorskip("pty")  # POSIX
    import fcntl
    import struct
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment | {"TERM": "xterm"}, stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    written = b""
    try:
        while piece := os.read(controller, 4096):
            written += piece
    except OSError:  # how Linux reports that the other end is closed
        pass
    os.close(controller)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    return [line.rstrip() for line in re.split("[\r\n]+", text)]


@pytest.mark.parametrize("width", [80, 120])
def test_second_epoch_on_a_terminal(width):
    lines = run_on_a_terminal(TWO_EPOCHS, width=width)
    assert lines[0] == f"width {width}"
    assert max(map(len, lines)) <= width
    live = [line for line in lines if re.fullmatch(r"epoch 150/150 [━╸╺ ]+ [\d,]+ images/s, left: .*", line)]
    assert any(
        re.search(r"left: epoch \d\d+ min, run \d\d+ min$|left: epoch .* h.*, run .* h.*$", line) for line in live
    ), lines
    assert [line for line in lines if line.startswith("150/150")] == [
        "150/150   1.250     40.00%   50.00%        0.05000      1,000          0 s"
    ]
    note = [line for line in lines if line.startswith(("a note", "several", "words", "note", "of"))]
    assert " ".join(note).split() == ["a", "note", "of", "several", "words"] * 6


def test_a_silenced_training_writes_nothing_to_a_terminal():
    silenced = f"from toolkit.reporting import silence\nwith silence():\n{textwrap.indent(TWO_EPOCHS, '    ')}"
    assert run_on_a_terminal(silenced, width=80) == ["width 80", ""]
