"""How progress and results look on a terminal. Progress is written to stderr; results come back as text."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from models.cost import Cost
    from toolkit.bench.result import BenchmarkResult
    from toolkit.data.dataset import DataStatus
    from toolkit.deploy.report import Report
    from toolkit.doctor import Finding
    from toolkit.evaluation.evaluate import SeedsMetrics
    from toolkit.evaluation.metrics import Metrics
    from toolkit.recipes.recipe import Recipe
    from toolkit.training.trainer import EpochRecord

REPORT_WIDTH = 120  # characters
LONG_RUN = 15 * 60  # seconds from which on a run's first lines say how long it will take
SECONDS_BEFORE_ESTIMATE = 5.0  # of steps, so that warming up does not distort the estimate much


class TrainingDisplay:
    """Progress of a run: a live line on a terminal, and a plain line for each epoch anywhere.

    Args:
        recipe: for the number of epochs, and what each costs.
        epochs_done: those that an interrupted run has behind it.
        suggest_fast: name the shorter preset where the run will take long.
    """

    def __init__(self, recipe: "Recipe", *, epochs_done: int = 0, suggest_fast: bool = False) -> None:
        from toolkit.recipes.schedule import crop_size_of

        self.epochs = recipe.epochs
        self.costs = [crop_size_of(recipe, epoch) ** 2 for epoch in range(1, recipe.epochs + 1)]  # pixels an image
        self.suggest_fast = suggest_fast
        self.console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task: TaskID = self.bar.add_task("", total=None, speed="")
        self.epochs_done = epochs_done
        self.start: float | None = None  # when the first step of this epoch ended
        self._first_done = self._last_done = 0
        self.estimated = False

    def __enter__(self) -> "TrainingDisplay":
        self.bar.start()
        self.note("epoch   loss   train acc   val acc   learning rate   images/s   time left")
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, done: int, images: int) -> None:
        """Called after each step with the images done in this epoch, and those it has in all."""
        if self.start is None or done <= self._last_done:
            self.start, self._first_done = time.perf_counter(), done
        self._last_done = done
        seconds = time.perf_counter() - self.start
        speed = (done - self._first_done) / seconds if seconds > 0 else 0.0
        self.bar.update(
            self.task,
            completed=done,
            total=images,
            description=f"epoch {self.epochs_done + 1}/{self.epochs}",
            speed=f"{speed:,.0f} images/s",
        )
        if not self.estimated and seconds > SECONDS_BEFORE_ESTIMATE and speed > 0:
            self.estimated = True
            self._say_how_long(images / speed * (1 + self._epochs_like(self.epochs_done + 1)))

    def _epochs_like(self, epoch: int) -> float:
        """How many epochs as dear as this one the epochs after it amount to: smaller crops cost less."""
        return sum(self.costs[epoch:]) / self.costs[min(epoch, self.epochs) - 1]

    def _say_how_long(self, seconds: float) -> None:
        if seconds > LONG_RUN:
            self.note(f"This run will take about {_duration(seconds)} on this machine.")
            if self.suggest_fast:
                self.note("A shorter way to 91% is the preset `fast`: cifar train --recipe fast --val-size 0")

    def epoch(self, record: "EpochRecord") -> None:
        """Print the line of an epoch that has ended."""
        self.epochs_done = record.epoch
        validation = "-" if record.val_accuracy is None else f"{record.val_accuracy:.2%}"
        self.note(
            f"{record.epoch:>3}/{self.epochs:<3}{record.train_loss:>6.3f}{record.train_accuracy:>11.2%}{validation:>11}"
            f"{record.learning_rate:>14.5f}{record.images_per_second:>12,.0f}"
            f"{_duration(self._epochs_like(record.epoch) * record.seconds):>13}"
        )

    def note(self, line: str) -> None:
        """Print a line above the live one."""
        self.console.print(line, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback for a download: what is happening, bytes so far, bytes in all. Shows nothing until called."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            console.print(what, markup=False, soft_wrap=True)
            tasks[what] = bar.add_task("", total=total)
            bar.start()
        bar.update(tasks[what], completed=done)

    try:
        yield progress
    finally:
        bar.stop()


def run_lines(path: Path, summary: dict[str, Any]) -> str:
    """The final figures of a run, in a few lines."""
    best, last = summary["best"], summary["last"]
    lines = [f"Run          {path}", f"Model        {summary['model']}, {summary['parameters']:,} parameters"]
    if best["validation"]:
        lines.append(f"Best epoch   {best['epoch']}, validation accuracy {best['validation']['accuracy']:.2%}")
        lines.append(
            f"Last epoch   {summary['epochs']}, validation accuracy {last['val_accuracy']:.2%}, training accuracy "
            f"{last['train_accuracy']:.2%}, generalisation gap {100 * last['generalisation_gap']:.2f} points"
        )
    else:
        lines.append(f"Last epoch   {summary['epochs']}, training accuracy {last['train_accuracy']:.2%}")
        lines.append("Validation   none: trained on all images, the last epoch is kept")
    lines.append(f"Time         {_duration(summary['training_seconds'])} of training on {summary['device']}")
    return "\n".join(lines)


def seeds_lines(path: Path, summary: dict[str, Any]) -> str:
    """The figures over all seeds of a recipe, then each seed's."""
    figures, rows = summary["figures"], summary["seeds"]
    columns = {"best_val_accuracy": "best val", "val_accuracy": "last val", "train_accuracy": "train"}
    shown = {name: heading for name, heading in columns.items() if name in figures}
    lines = [f"{summary['n']} seeds of {summary['model']}, {summary['parameters']:,} parameters, in {path}"]
    lines.append(f"{'seed':<10}" + "".join(f"{heading:>10}" for heading in shown.values()) + f"{'time':>15}")
    for row in rows:
        accuracies = "".join(f"{row[name]:>10.2%}" for name in shown)
        lines.append(f"{row['seed']:<10}{accuracies}{_duration(row['training_seconds']):>15}")
    for label, key in _SPREAD_ROWS:
        lines.append(f"{label:<10}" + "".join(_percent(figures[name][key]) for name in shown))
    return "\n".join(lines)


def seeds_metrics_lines(result: "SeedsMetrics") -> str:
    """The test accuracy of each seed, then mean, standard deviation and minimum."""
    lines = [f"{'seed':<10}{'test':>10}{'correct':>10}{'epoch':>8}"]
    for seed, (epoch, metrics) in enumerate(zip(result.epochs, result.metrics, strict=True)):
        lines.append(f"{seed:<10}{metrics.accuracy:>10.2%}{metrics.correct:>10,}{epoch:>8}")
    accuracy = result.as_dict()["figures"]["accuracy"]
    lines += [f"{label:<10}" + _percent(accuracy[key]) for label, key in _SPREAD_ROWS]
    return "\n".join(lines)


_SPREAD_ROWS = (("mean", "mean"), ("std", "std"), ("minimum", "min"))


def _percent(value: float | None) -> str:
    return f"{_number(value, '.2%'):>10}"


def metrics_lines(metrics: "Metrics") -> str:
    """Accuracy, loss and calibration, each class's accuracy, and the confusion matrix."""
    names, width = metrics.class_names, max(len(name) for name in metrics.class_names) + 2
    lines = [
        f"Accuracy           {metrics.accuracy:.2%} ({metrics.correct:,} of {metrics.images:,} images)",
        f"Loss               {metrics.loss:.4f} nats",
        f"Calibration error  {metrics.calibration_error:.4f}",
        "",
        f"{'true class':<{width}}{'accuracy':>9}   taken for " + " ".join(f"{name[:6]:>6}" for name in names),
    ]
    for (name, accuracy), row in zip(metrics.per_class_accuracy.items(), metrics.confusion, strict=True):
        shown = "-" if accuracy is None else f"{accuracy:.2%}"
        lines.append(f"{name:<{width}}{shown:>9}             " + " ".join(f"{count:>6}" for count in row))
    return "\n".join(lines)


def report_lines(report: "Report") -> str:
    """Each figure of the gate beside its limit."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="")
    for heading in ("check", "found", "limit", "outcome"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", "outcome"))
    for check in report.checks:
        outcome = {True: "passed", False: "REJECTED", None: "reported"}[check.passed]
        table.add_row(*map(escape, (check.name, check.found, check.limit, outcome)))
    text = StringIO()
    Console(file=text, width=REPORT_WIDTH, highlight=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def doctor_lines(findings: "Sequence[Finding]") -> str:
    """What was found on this machine, a line each, with the remedy below what is missing."""
    width = max(len(finding.name) for finding in findings) + 2
    lines = []
    for finding in findings:
        mark = {True: "ok", False: "BAD", None: "--"}[finding.ok]
        lines.append(f"{mark:<4}{finding.name:<{width}}{finding.found}")
        if finding.remedy:
            lines.append(" " * (4 + width) + f"-> {finding.remedy}")
    return "\n".join(lines)


def models_lines(costs: "Sequence[Cost]") -> str:
    """The networks: parameters, multiply-accumulates, and whether they are under the design's ceiling."""
    lines = [f"{'model':<15}{'parameters':>12}{'multiply-accumulates':>22}   under the ceiling"]
    for cost in costs:
        under = "yes" if cost.under_ceiling else "no"
        lines.append(f"{cost.model:<15}{cost.parameters:>12,}{cost.multiply_accumulates:>22,}   {under}")
    return "\n".join(lines)


def data_lines(status: "DataStatus") -> str:
    """Which data are there, and whether they are whole."""
    if status.folder is None:
        return f"demo: {status.train_count:,} training and {status.test_count:,} test pictures, drawn when needed"
    lines = [f"{status.name} in {status.folder} (chosen by {status.chosen_by})"]
    lines += [f"  {name:<16}{state}" for name, state in status.files.items()]
    if status.complete:
        lines.append(f"{status.train_count:,} training and {status.test_count:,} test images, every MD5 right")
    return "\n".join(lines)


def benchmark_lines(benchmark: "BenchmarkResult") -> str:
    """The machine and the settings of a benchmark, its tables, and its notes."""
    text = StringIO()
    console = Console(file=text, width=REPORT_WIDTH, highlight=False, markup=False, emoji=False, color_system=None)
    console.print(benchmark.heading)
    for headings, rows in benchmark.tables():
        table = Table(box=None, pad_edge=False, header_style="")
        for heading in headings:
            table.add_column(heading, overflow="fold", justify="left" if heading == "side" else "right")
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    console.print()
    for note in benchmark.all_notes():
        console.print(note)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
