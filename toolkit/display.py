"""Terminal output: progress goes to stderr as it happens; results are returned as text for stdout.

Inside a block of `toolkit.reporting.silence` no progress is shown.
"""

import io
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from toolkit.files import escape
from toolkit.reporting import Note, is_silenced

if TYPE_CHECKING:
    from models.cost import Cost
    from toolkit.bench.result import BenchmarkResult
    from toolkit.cluster.prediction import PartsWritten
    from toolkit.data.overview import DataOverview
    from toolkit.deploy.report import Report
    from toolkit.doctor import Finding
    from toolkit.evaluation.evaluate import SeedsMetrics
    from toolkit.evaluation.metrics import Metrics
    from toolkit.recipes.recipe import Recipe
    from toolkit.training.trainer import EpochRecord

FILE_WIDTH = 100  # characters a line where stdout is a file or a pipe
LONG_RUN_SECONDS = 15 * 60  # a run estimated to take longer is announced
WARMUP_SECONDS = 5.0  # of steps before the first estimate: the first steps are slower than the rest
MATRIX_CLASSES = 20  # the confusion matrix of more classes is replaced by its largest entries
ROWS_SHOWN = 10  # of these entries, and of the classes with the lowest accuracy


def output_width() -> int:
    """Return the width of the terminal behind stdout, or `FILE_WIDTH` where stdout is a file or a pipe."""
    return Console().width if sys.stdout.isatty() else FILE_WIDTH


# Progress on stderr


def _stderr_console() -> Console:
    console = Console(stderr=True, highlight=False, quiet=is_silenced())
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def _live_bar(console: Console, *columns: ProgressColumn) -> Progress:
    """A bar that is shown on a terminal only, and removed at its end."""
    disable = console.quiet or not console.is_terminal
    return Progress(*columns, console=console, transient=True, expand=True, disable=disable)


@contextmanager
def _stopping(bar: Progress) -> Iterator[None]:
    """Stop the bar at the end of the block, if it was started."""
    try:
        yield
    finally:
        bar.stop()


class TrainingDisplay:
    """Show a training run on stderr: one line per epoch and, on a terminal, a live line below them.

        with TrainingDisplay(recipe) as display:
            train(recipe, ..., on_epoch=display.epoch, on_progress=display.step, note=display.note)

    Args:
        recipe: gives the number of epochs and the crop size of each, on which its cost depends.
        epochs_done: epochs completed before this run was resumed.
        suggest_fast: name the preset `fast` if the run is estimated to take longer than `LONG_RUN_SECONDS`.
    """

    def __init__(self, recipe: "Recipe", *, epochs_done: int = 0, suggest_fast: bool = False) -> None:
        from toolkit.recipes.schedule import choose_crop_size

        self._epochs = recipe.epochs
        crop_sizes = [choose_crop_size(recipe, epoch) for epoch in range(1, recipe.epochs + 1)]
        self._costs = [size**2 for size in crop_sizes]  # pixels per image, of each epoch
        self._epochs_done = epochs_done
        self._suggest_fast = suggest_fast
        self._estimated = False
        self._first_step_end: float | None = None  # of the current epoch
        self._first_done = self._last_done = 0  # images
        self._console = _stderr_console()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[state]}"))
        self._bar = _live_bar(self._console, *columns)
        self._task: TaskID = self._bar.add_task(self._epoch_name(), total=None, state="")

    def __enter__(self) -> "TrainingDisplay":
        self._bar.start()
        self._console.print(_epoch_line([heading for heading, _ in _EPOCH_COLUMNS]))
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, done: int, images: int) -> None:
        """Update the live line after a step: `done` of the epoch's `images` have been trained on."""
        if self._first_step_end is None or done <= self._last_done:  # a new epoch
            self._first_step_end, self._first_done = time.perf_counter(), done
        self._last_done = done
        seconds = time.perf_counter() - self._first_step_end
        speed = (done - self._first_done) / seconds if seconds > 0 else 0.0
        if speed == 0:
            state = ""
        else:
            epoch_left = (images - done) / speed
            run_left = epoch_left + images / speed * self._later_epochs(self._epochs_done + 1)
            state = f"{speed:,.0f} images/s, left: epoch {_estimate(epoch_left)}, run {_estimate(run_left)}"
        self._bar.update(self._task, completed=done, total=images, description=self._epoch_name(), state=state)
        if not self._estimated and speed > 0 and seconds > WARMUP_SECONDS:
            self._estimated = True
            self._announce_long_run(images / speed * (1 + self._later_epochs(self._epochs_done + 1)))

    def epoch(self, record: "EpochRecord") -> None:
        """Print the line of a completed epoch."""
        self._epochs_done = record.epoch
        row = (
            f"{record.epoch}/{self._epochs}",
            f"{record.train_loss:.3f}",
            f"{record.train_accuracy:.2%}",
            _number(record.val_accuracy, ".2%"),
            f"{record.learning_rate:.5f}",
            f"{record.images_per_second:,.0f}",
            _estimate(self._later_epochs(record.epoch) * record.seconds),
        )
        self._console.print(_epoch_line(row))

    def note(self, text: str) -> None:
        """Print a line above the live one, wrapped between words on a terminal and whole in a file."""
        self._console.print(Text(escape(text)), soft_wrap=not self._console.is_terminal)

    def _epoch_name(self) -> str:
        return f"epoch {min(self._epochs_done + 1, self._epochs)}/{self._epochs}"

    def _later_epochs(self, epoch: int) -> float:
        """Return the cost of all epochs after this one, in multiples of its own: smaller crops cost less."""
        return sum(self._costs[epoch:]) / self._costs[min(epoch, self._epochs) - 1]

    def _announce_long_run(self, seconds: float) -> None:
        if seconds > LONG_RUN_SECONDS:
            self.note(f"This run will take about {_estimate(seconds)} on this machine.")
            if self._suggest_fast:
                self.note("A shorter way to 91% is the preset `fast`: cifar train --recipe fast --val-size 0")


_EPOCH_COLUMNS = (  # heading, width: 74 characters with the spaces between them
    ("epoch", 7), ("loss", 6), ("train acc", 9), ("val acc", 7), ("learning rate", 13), ("images/s", 9),
    ("run left", 11),
)  # fmt: skip


def _epoch_line(cells: Sequence[str]) -> Table:
    """Build one row of the epoch table, with columns of fixed widths because each row is printed alone."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _, width in _EPOCH_COLUMNS:
        table.add_column(justify="right", min_width=width, no_wrap=True)
    table.add_row(*cells)
    return table


def _estimate(seconds: float) -> str:
    """Format an estimated duration with at most two significant figures."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if (minutes := round(seconds / 60)) < 100:
        return f"{minutes} min"
    hours, tens = divmod(round(seconds / 600), 6)
    return f"{hours} h {10 * tens:02} min" if hours < 10 else f"{round(seconds / 3600)} h"


def _duration(seconds: float) -> str:
    """Format a measured duration, to the second below one hour and to the minute above."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


@contextmanager
def data_callbacks(note: Note) -> Iterator[dict[str, Any]]:
    """Yield the callbacks of `find_data` by name: `note`, and bars as `progress` and `on_pictures`."""
    with download_bar() as progress, decoding_bar() as on_pictures:
        yield {"note": note, "progress": progress, "on_pictures": on_pictures}


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress callback for a download: what is downloaded, bytes done, bytes in all.

    Shows nothing until the first call. Prints each name once, and a live bar on a terminal.
    """
    console = _stderr_console()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn())
    bar = _live_bar(console, *columns, TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in tasks:
            console.print(Text(name), soft_wrap=not console.is_terminal)
            tasks[name] = bar.add_task("", total=total)
            bar.start()
        bar.update(tasks[name], completed=done)
        if done == total:
            bar.stop()

    with _stopping(bar):
        yield progress


@contextmanager
def decoding_bar() -> Iterator[Callable[[int, int], None]]:
    """Yield a progress callback for decoding pictures: how many are done, of how many.

    Shows nothing until the first call. Prints the number of pictures once, and a live bar on a terminal.
    """
    console = _stderr_console()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    bar = _live_bar(console, *columns)
    tasks: list[TaskID] = []

    def progress(done: int, total: int) -> None:
        if not tasks:
            console.print(f"Decoding {total:,} pictures, once: they are then kept in the cache folder")
            tasks.append(bar.add_task("", total=total))
            bar.start()
        bar.update(tasks[0], completed=done, total=total)
        if done == total:
            bar.stop()

    with _stopping(bar):
        yield progress


@contextmanager
def jobs_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a progress callback for parallel jobs: number of `unit` done, number in total.

    Shows nothing until the first call; then a live bar on a terminal, and elsewhere a line for each tenth of the work.
    """
    console = _stderr_console()
    columns = (TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit), BarColumn(bar_width=None))
    bar = _live_bar(console, *columns, TimeRemainingColumn())
    task = bar.add_task("", total=1)
    shown = -1

    def progress(done: int, total: int) -> None:
        nonlocal shown
        bar.start()
        bar.update(task, completed=done, total=total)
        tenths = 10 * done // max(total, 1)
        if not console.is_terminal and tenths > shown:
            shown = tenths
            console.print(f"{done:,} of {total:,} {unit}")

    with _stopping(bar):
        yield progress


# Results as text


def run_lines(path: Path, summary: dict[str, Any]) -> str:
    """Format the summary of a completed run: model, accuracies and time."""
    best, last = summary["best"], summary["last"]
    facts = [("Run", str(path)), ("Model", f"{summary['model']}, {summary['parameters']:,} parameters")]
    if best["validation"]:
        facts += [
            (
                "Best epoch",
                f"{best['epoch']}, validation accuracy {best['validation']['accuracy']:.2%}, macro "
                f"{best['validation']['macro_accuracy']:.2%}",
            ),
            (
                "Last epoch",
                f"{summary['epochs']}, validation accuracy {last['val_accuracy']:.2%}, training accuracy "
                f"{last['train_accuracy']:.2%}, generalization gap {100 * last['generalisation_gap']:.2f} points",
            ),
        ]
    else:
        facts += [
            ("Last epoch", f"{summary['epochs']}, training accuracy {last['train_accuracy']:.2%}"),
            ("Validation", "none: trained on all images, so the last epoch is kept"),
        ]
    facts.append(("Time", f"{_duration(summary['training_seconds'])} of training on {summary['device']}"))
    return _facts(facts)


def seeds_lines(path: Path, summary: dict[str, Any]) -> str:
    """Format a recipe's figures: one row per seed, then mean, standard deviation and minimum."""
    figures = summary["figures"]
    headings = {"best_val_accuracy": "best val acc", "val_accuracy": "last val acc", "train_accuracy": "train acc"}
    names = [name for name in headings if name in figures]
    rows = [
        [str(row["seed"]), *(f"{row[name]:.2%}" for name in names), _duration(row["training_seconds"])]
        for row in summary["seeds"]
    ]
    rows += [[label, *(_number(figures[name][key], ".2%") for name in names)] for label, key in _SPREAD]
    title = _wrap(f"{summary['n']} seeds of {summary['model']}, {summary['parameters']:,} parameters, in {path}")
    return f"{title}\n{_table(['seed', *(headings[name] for name in names), 'time'], rows)}"


def seeds_metrics_lines(result: "SeedsMetrics") -> str:
    """Format the test accuracy of each seed, then mean, standard deviation and minimum."""
    rows = [
        [str(seed), f"{metrics.accuracy:.2%}", f"{metrics.correct:,}", str(epoch)]
        for seed, (epoch, metrics) in enumerate(zip(result.epochs, result.metrics, strict=True))
    ]
    accuracy = result.as_dict()["figures"]["accuracy"]
    rows += [[label, _number(accuracy[key], ".2%")] for label, key in _SPREAD]
    return _table(["seed", "test acc", "correct", "epoch"], rows)


_SPREAD = (("mean", "mean"), ("std", "std"), ("minimum", "min"))


def metrics_lines(metrics: "Metrics") -> str:
    """Format accuracy, loss and calibration error, then each class's accuracy with the confusion matrix.

    If the matrix has more than `MATRIX_CLASSES` classes or is wider than the terminal, list its largest off-diagonal
    entries and the classes with the lowest accuracy instead.
    """
    facts = [
        ("Accuracy", f"{metrics.accuracy:.2%} ({metrics.correct:,} of {metrics.images:,} images)"),
        ("Macro accuracy", f"{metrics.macro_accuracy:.2%} (mean over classes)"),
        *([("Top-5 accuracy", f"{metrics.top5_accuracy:.2%}")] if metrics.top5_accuracy is not None else []),
        ("Loss", f"{metrics.loss:.4f} nats"),
        ("Calibration error", f"{metrics.calibration_error:.4f}"),
    ]
    matrix = _confusion_matrix(metrics) if len(metrics.class_names) <= MATRIX_CLASSES else None
    if matrix is None or max(map(len, matrix.splitlines())) > output_width():
        return "\n\n".join((_facts(facts), _lowest_accuracies(metrics), _most_confused(metrics)))
    return "\n\n".join((_facts(facts), "Confusion matrix: a row per true class, a column per predicted class", matrix))


def _confusion_matrix(metrics: "Metrics") -> str:
    """Format one row per true class, without a width limit; class indices head the columns."""
    rows = [
        [f"{index} {name}", _number(accuracy, ".2%"), *map(str, counts)]
        for index, ((name, accuracy), counts) in enumerate(
            zip(metrics.per_class_accuracy.items(), metrics.confusion, strict=True)
        )
    ]
    return _table(["true class", "accuracy", *map(str, range(len(rows)))], rows, width=10_000, gap=1)


def _lowest_accuracies(metrics: "Metrics") -> str:
    found = [(value, name) for name, value in metrics.per_class_accuracy.items() if value is not None]
    rows = [[name, f"{accuracy:.2%}"] for accuracy, name in sorted(found)[:ROWS_SHOWN]]
    title = f"Lowest accuracies, {len(rows)} of {len(metrics.class_names):,} classes (--json gives all)"
    return f"{_wrap(title)}\n{_table(['true class', 'accuracy'], rows)}"


def _most_confused(metrics: "Metrics") -> str:
    pairs = metrics.most_confused()
    if not pairs:
        return "No image was assigned to a wrong class"
    rows = [[true, predicted, f"{count:,}"] for true, predicted, count in pairs[:ROWS_SHOWN]]
    title = f"Most confused pairs, {len(rows)} of {len(pairs):,}"
    return f"{title}\n{_table(['true class', 'predicted class', 'images'], rows, texts=2)}"


def report_lines(report: "Report") -> str:
    """Format the gate's report: the figure found by each check beside its limit."""
    outcomes = {True: "passed", False: "REJECTED", None: "reported"}
    rows = [[check.name, check.found, check.limit, outcomes[check.passed]] for check in report.checks]
    return _table(["check", "found", "limit", "outcome"], rows, texts=4)


def models_lines(costs: "Sequence[Cost]") -> str:
    """Format parameters and multiply-accumulates of each network."""
    from models import MAX_PARAMETERS

    rows = [
        [cost.model, f"{cost.parameters:,}", f"{cost.multiply_accumulates:,}", "yes" if cost.under_ceiling else "no"]
        for cost in costs
    ]
    return _table(["model", "parameters", "multiply-accumulates", f"under {MAX_PARAMETERS:,} parameters"], rows)


def doctor_lines(findings: "Sequence[Finding]") -> str:
    """Format the findings, one per line, each with its remedy below it."""
    marks = {True: "ok", False: "BAD", None: "--"}
    facts = []
    for finding in findings:
        facts.append((f"{marks[finding.ok]:<4}{finding.name}", finding.found))
        if finding.remedy:
            facts.append(("", f"-> {finding.remedy}"))
    return _facts(facts)


def data_lines(overview: "DataOverview") -> str:
    """Format a data set: its folder and its files, the pictures of each class, the remarks, the number of samples."""
    status, report = overview.status, overview.report
    if status.folder is None:
        lines = ["demo: synthetic pictures, generated on demand"]
    else:
        lines = [_wrap(f"{status.name} in {status.folder} (chosen by {status.chosen_by})")]
    if status.files and not status.complete:
        lines.append(_table(["file", "state"], [list(row) for row in status.files.items()], texts=2))
    elif status.files:
        lines.append("every MD5 checksum right")
    if report is not None:
        header, *rows = report.rows()
        lines += ["", _table(header, rows)]
        lines += ["", *map(_wrap, report.notes)] if report.notes else []
    if overview.samples:
        lines.append(_wrap(f"{len(overview.samples)} sample pictures in {overview.samples[0].parent}"))
    return "\n".join(lines)


def parts_lines(written: "PartsWritten") -> str:
    """Format the counts of a folder of predictions: parts, pictures and errors."""
    kept = f", {written.kept} of them from before" if written.kept else ""
    counts = f"{written.parts} parts{kept}; {written.pictures:,} pictures; {written.failure_count} errors"
    return f"{escape(written.folder)}: {counts}"


def _table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1, width: int | None = None, gap: int = 2
) -> str:
    """Lay out a table no wider than the terminal, without control characters.

    Args:
        headings: one per column.
        rows: their cells; missing cells at a row's end are left empty.
        texts: how many of the first columns hold text, aligned to the left and wrapped between words if need be; the
            others hold numbers, aligned to the right and never wrapped.
        width: characters a line; `output_width()` by default.
        gap: spaces between columns.
    """
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="")
    for index, heading in enumerate(headings):
        if index < texts:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))
    text = io.StringIO()
    Console(file=text, width=width or output_width(), color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    """Lay out labels and values, one pair per line; a long value continues below itself."""
    indent = max(len(label) for label, _ in facts) + 3
    width = max(output_width() - indent, 20)
    lines = []
    for label, value in facts:
        first, *others = _wrap(value, width=width).splitlines() or [""]
        lines += [f"{label:<{indent}}{first}", *(" " * indent + other for other in others)]
    return "\n".join(lines)


def _wrap(text: str, *, width: int | None = None) -> str:
    """Wrap between words only: paths and commands stay whole, so that they can be copied."""
    return textwrap.fill(escape(text), width or output_width(), break_long_words=False, break_on_hyphens=False)


def benchmark_lines(benchmark: "BenchmarkResult") -> str:
    """Format machine and settings of a benchmark, its tables, and its notes."""
    parts = [_wrap(benchmark.heading)]
    for headings, rows in benchmark.tables():
        parts.append(_table(headings, rows, texts=headings.index("side") + 1))
    parts.append("\n".join(map(_wrap, benchmark.all_notes())))
    return "\n\n".join(filter(None, parts))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
