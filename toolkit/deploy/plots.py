"""A picture of `cifar bench deploy`, as a PNG file."""

from pathlib import Path

from matplotlib.figure import Figure

from toolkit.deploy.benchmark import DeploymentBenchmark
from toolkit.training.plots import save_figure


def plot_deployment(benchmark: DeploymentBenchmark, path: Path) -> None:
    """Images per second and median latency over the batch size, a line for each side."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    for result in benchmark.sides:
        sizes = [timing.batch_size for timing in result.timings]
        speed.plot(sizes, [timing.images_per_second for timing in result.timings], marker="o", label=result.side.name)
        latency.plot(sizes, [timing.p50_ms for timing in result.timings], marker="o")
    speed.set(ylabel="images per second", ylim=(0, None))
    latency.set(ylabel="median latency, ms", yscale="log")
    for axes in (speed, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(benchmark.batch_sizes, [str(size) for size in benchmark.batch_sizes])
        axes.set_xlabel("images a call")
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    figure.suptitle(f"{benchmark.device}, {benchmark.cores} cores")
    save_figure(figure, path)
