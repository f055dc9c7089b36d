"""Plots as PNG files: learning curves, confusion matrix, deployment benchmark, predictions."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.metrics import Metrics
from toolkit.files import replacing, require_writable, shorten
from toolkit.inference.image import read_image
from toolkit.inference.paths import STDIN, expand

if TYPE_CHECKING:
    from toolkit.bench.result import BenchmarkResult
    from toolkit.inference.pipeline import Prediction

MAX_PICTURES = 36  # in one picture of predictions
MATRIX_CLASSES = 20  # the largest confusion matrix that is drawn
MAX_PAIRS = 30  # in place of a larger one
TITLE_LIMIT = 120  # characters


def format_label(text: str, *, limit: int = 40) -> str:
    """Escape text from a file for Matplotlib: printable, at most `limit` characters, `$` not parsed as math."""
    return shorten(text, limit=limit).replace("$", r"\$")


def plot_curves(records: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Accuracy, loss and learning rate over epochs, from the lines of `metrics.jsonl`."""
    epochs = [record["epoch"] for record in records]
    marker = "." if len(epochs) < 20 else ""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    accuracy, loss, rate = figure.subplots(1, 3)
    for axes, name, factor in ((accuracy, "accuracy", 100.0), (loss, "loss", 1.0)):
        for part, label in (("train", "train (augmented)"), ("val", "validation")):
            values = [record[f"{part}_{name}"] for record in records]
            if None not in values:
                axes.plot(epochs, [value * factor for value in values], label=label, marker=marker)
        axes.legend(frameon=False)
    rate.plot(epochs, [record["learning_rate"] for record in records], color="tab:gray", marker=marker)
    for axes, label in ((accuracy, "accuracy, %"), (loss, "cross-entropy, nats"), (rate, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    figure.suptitle(format_label(title, limit=TITLE_LIMIT))
    save_figure(figure, path)


def plot_confusion(metrics: Metrics, path: Path, *, title: str) -> None:
    """Plot the confusion matrix; above `MATRIX_CLASSES` classes, plot the most confused pairs instead."""
    heading = f"{format_label(title, limit=TITLE_LIMIT)}\n{metrics.accuracy:.2%} of {metrics.images:,} images"
    if len(metrics.class_names) > MATRIX_CLASSES:
        _plot_most_confused(metrics, path, heading=heading)
    else:
        _plot_matrix(metrics, path, heading=f"{heading}, row percent")


def _plot_most_confused(metrics: Metrics, path: Path, *, heading: str) -> None:
    """A bar for each of the most frequent pairs of a true and a predicted class."""
    pairs = metrics.most_confused()
    shown = pairs[:MAX_PAIRS]
    figure = Figure(figsize=(8, 1.5 + 0.28 * max(len(shown), 1)), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    axes.barh(places, [count for _, _, count in shown], color="tab:blue")
    axes.set_yticks(places, [f"{format_label(true)} as {format_label(predicted)}" for true, predicted, _ in shown])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"images; the {len(shown)} most confused pairs of {len(pairs):,}", title=heading)
    save_figure(figure, path)


def _plot_matrix(metrics: Metrics, path: Path, *, heading: str) -> None:
    """A row for each true class, in percent of its images."""
    names = [format_label(name) for name in metrics.class_names]
    rows = [[100 * count / max(sum(row), 1) for count in row] for row in metrics.confusion]
    side = max(4.0, 2.4 + 0.42 * len(names))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=heading,
    )
    for i, row in enumerate(rows):
        for j, percent in enumerate(row):
            if percent >= 0.05:
                axes.text(
                    j,
                    i,
                    f"{percent:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if percent > 50 else "black",
                )
    save_figure(figure, path)


def plot_deployment(benchmark: "BenchmarkResult", path: Path) -> None:
    """Images per second and median latency over the batch size, a line for each side; all axes are logarithmic."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    for number, result in enumerate(benchmark.results):
        sizes = [timing.batch_size for timing in result.timings]
        style = {"color": f"C{number % 10}", "marker": "osD^vX"[number % 6], "markersize": 5}
        speed.plot(sizes, [timing.images_per_second for timing in result.timings], label=result.side.name, **style)
        latency.plot(sizes, [timing.p50_ms for timing in result.timings], **style)
    sizes = list(dict.fromkeys(timing.batch_size for result in benchmark.results for timing in result.timings))
    for axes, label in ((speed, "images per second"), (latency, "median latency, ms")):
        axes.set(xscale="log", yscale="log", xlabel="images per call", ylabel=label)
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    figure.suptitle(f"{benchmark.device}, {benchmark.cores} cores")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def require_plottable(paths: Iterable[str], path: Path) -> None:
    """Check, before any picture is predicted, that `plot_predictions` can draw the pictures that `paths` name.

    Raises:
        UsageError: more than `MAX_PICTURES` pictures, standard input, or `path` does not name a PNG file.
        ToolkitError: `path` cannot be written.
    """
    require_writable(path, suffix=".png")
    named = list(islice(expand(paths), MAX_PICTURES + 1))
    if STDIN in named:
        raise UsageError("--plot draws picture files, not standard input: leave out --plot")
    if len(named) > MAX_PICTURES:
        raise UsageError(
            f"--plot draws at most {MAX_PICTURES} pictures, and more are named: name fewer, or leave out --plot"
        )


def plot_predictions(predictions: "Sequence[Prediction]", path: Path) -> None:
    """Each picture as the network sees it, above bars of its most probable classes.

    Args:
        predictions: of picture files, at most `MAX_PICTURES`.
        path: a PNG file.

    Raises:
        ToolkitError: more pictures, a picture that can no longer be read, or a file that cannot be written.
    """
    if len(predictions) > MAX_PICTURES:
        raise ToolkitError(f"--plot draws at most {MAX_PICTURES} pictures, not {len(predictions)}")
    count = len(predictions)
    columns = min(count, 6)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.2 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.2, 1] * rows)
    for each in axes.flat:
        each.set_axis_off()
    for number, prediction in enumerate(predictions):
        row, column = 2 * (number // columns), number % columns
        axes[row][column].imshow(read_image(prediction.path), interpolation="nearest")
        axes[row][column].set_title(format_label(Path(prediction.path).name), fontsize=9)
        _plot_probabilities(axes[row + 1][column], prediction.top)
    save_figure(figure, path)


def _plot_probabilities(axes: Any, top: Sequence[tuple[str, float]]) -> None:
    axes.set_axis_on()
    places = range(len(top))
    axes.barh(places, [probability for _, probability in top], color="tab:blue", height=0.7)
    axes.set(xlim=(0, 1.35), ylim=(len(top) - 0.4, -0.6), xticks=[])
    axes.set_yticks(places, [format_label(label) for label, _ in top], fontsize=8)
    for place, (_, probability) in zip(places, top, strict=True):
        axes.text(probability + 0.03, place, f"{probability:.0%}", va="center", fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
