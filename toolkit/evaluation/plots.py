"""Plots as PNG files: learning curves, confusion matrix, deployment benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from toolkit.evaluation.metrics import Metrics
from toolkit.files import replacing

if TYPE_CHECKING:
    from toolkit.bench.result import BenchmarkResult


def plot_curves(records: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Accuracy, loss and learning rate over epochs, from the lines of `metrics.jsonl`."""
    epochs = [record["epoch"] for record in records]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    accuracy, loss, rate = figure.subplots(1, 3)
    for axes, name, factor in ((accuracy, "accuracy", 100.0), (loss, "loss", 1.0)):
        for part, label in (("train", "train (augmented)"), ("val", "validation")):
            values = [record[f"{part}_{name}"] for record in records]
            if values and values[0] is not None:
                axes.plot(
                    epochs, [value * factor for value in values], label=label, marker="." if len(epochs) < 20 else ""
                )
        axes.legend(frameon=False)
    rate.plot(
        epochs,
        [record["learning_rate"] for record in records],
        color="tab:gray",
        marker="." if len(epochs) < 20 else "",
    )
    for axes, label in ((accuracy, "accuracy, %"), (loss, "cross-entropy, nats"), (rate, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    save_figure(figure, path)


def plot_confusion(metrics: Metrics, path: Path, *, title: str) -> None:
    """The confusion matrix: a row for each true class, in percent of its images."""
    names = metrics.class_names
    rows = [[100 * count / max(sum(row), 1) for count in row] for row in metrics.confusion]
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=f"{title}\n{metrics.accuracy:.2%} of {metrics.images:,} images, row percent",
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
