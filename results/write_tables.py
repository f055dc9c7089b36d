"""Write results/README.md, results/recipes.md and the model card from the JSON files and the recipe in the repository.

    python -m results.write_tables [--pictures]

`--pictures` also draws results/bench-deploy.png. A test compares the three pages with what this script would write.

The JSON files stand in `results/`, those of the shipped model in `toolkit/weights/`:

- `presets.json`: the preset, command and run folders behind each line of the table of recipes. Such a folder holds the
  run's `summary.json`, and in `evaluation.json` the output of `cifar evaluate --json`.
- `trials.json`: a row for each ingredient that was tried. To add one, append an object with `what`; `base` (the preset
  or the `what` of the trial that was changed, or null if only the changes were recorded); `changes` (recipe keys and values, nested as in a recipe file); `epochs`;
  `seeds` (a list, or null if not recorded); `val_accuracy` (a list in [0, 1], one value per seed); `decision`. A trial
  of speed has, in the place of these figures, `speed`: the benchmark's `file`, and how the names of the sides begin that
  were `tried` and that they are compared with (`base`).
- `bench-*.json`, `limits/*.json`: the output of `cifar bench ... --json`; `export-*.json`: of `cifar export --json`.
- `time-to-91/*.json`: written by `time_to_91.py`; `note`, added by hand, is printed beside the ratio.
- `calibration.json`: written by `choose_calibration.py`.
"""

import argparse
import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toolkit.bench.result import BenchmarkResult, Result, Timing
from toolkit.evaluation.plots import plot_deployment
from toolkit.recipes.recipe import Recipe, load_recipe, preset_names, recipe_keys

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "toolkit" / "weights"
RESULTS = ROOT / "results"
NOT_MEASURED = "not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true")
    options = parser.parse_args()
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    if options.pictures:
        plot_deployment(read_benchmark("bench-deploy.json"), RESULTS / "bench-deploy.png")


def pages() -> dict[Path, str]:
    """The text of every page that this script writes."""
    return {
        RESULTS / "README.md": results_page(),
        RESULTS / "recipes.md": recipes_page(),
        WEIGHTS / "README.md": model_card(),
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_benchmark(name: str) -> BenchmarkResult:
    return BenchmarkResult.from_dict(read(RESULTS / name))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (headings, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])


def sources(*, command: str, files: Sequence[str], machine: str, n: str) -> str:
    """The lines below each table: how it was measured, and where the figures are."""
    links = ", ".join(f"[`{file}`]({file})" for file in files)
    return f"- Command: `{command}`\n- Machine: {machine}\n- n: {n}\n- JSON: {links}"


def format_difference(value: float) -> str:
    """A difference of logits or of pixel levels, to two significant figures."""
    return f"{value:#.2g}"


def format_bytes(count: int) -> str:
    return f"{count / 1e3:,.0f} kB"


def format_seconds(seconds: Sequence[float]) -> str:
    """The mean of several runs; their range if they differ by more than a third."""
    low, high = min(seconds), max(seconds)
    unit, name = (60, "min") if low >= 300 else (1, "s")
    if high > 4 / 3 * low:
        return f"{low / unit:.0f}-{high / unit:.0f} {name}"
    return f"{statistics.mean(seconds) / unit:.0f} {name}"


def format_std(values: Sequence[float], digits: int) -> str:
    return f"{statistics.stdev(values):.{digits}%}" if len(values) > 1 else "-"


def machine_of(benchmark: BenchmarkResult) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in benchmark.libraries.items())
    return f"{benchmark.device or 'processor not recorded'}, {benchmark.cores} cores; {versions}"


def results_page() -> str:
    return f"""# Results

Every table of this page is written from the JSON files in this folder by `python -m results.write_tables`, and a test
compares the two. The tables were not all measured on the same machine: compare figures within a table only. On a GPU,
nothing was measured.

How the figures are obtained:

- The official test set is read by `evaluate`, `verify`, `export` and `bench deploy`, never by `train`.
- Recipes, ingredients and calibrations are chosen on the 5,000 validation images of the 45,000/5,000 split.
- `fast` and `best` are trained on all 50,000 training images; the test accuracy of the last epoch is reported, for seeds
  0 to n - 1 without exception. `reference` is trained as a bare `cifar train` does it, with 5,000 images held out for
  validation.
- The shipped model is seed 0 of its recipe.
- A speed ratio comes from one benchmark run: each side in a process of its own, sides timed in turn, medians.

Terms:

- **gate**: the checks that a model file must pass before `cifar export` writes it; `cifar verify` repeats them.
- **picture rule**: how any picture becomes 32x32 RGB pixels: EXIF rotation, white under transparency, center square,
  antialiased bicubic resizing.
- **level**: a step of a pixel value, which goes from 0 to 255.
- **logit difference**: the absolute difference from PyTorch in float32, over random images and the test set unless the
  text says otherwise.
- **side**: one of the programs or sessions that a benchmark compares.
- **bare session**: ONNX Runtime called directly, with its own defaults.
- **std**: the sample standard deviation over seeds; it needs more than one.

The recipe keys and the presets are described in [recipes.md](recipes.md).

## Shipped model

{shipped_section()}

## Recipes

{presets_section()}

## Tried ingredients

{trials_section()}

## Precisions

{precisions_section()}

## The picture rule inside the graph

{picture_graph_section()}

## Own pictures

{own_pictures_section()}

## A folder of 60,000 files

{folder_section()}

## Web page

{page_section()}

## Server

{server_section()}

## Calibration of int8

{calibration_section()}

## Training speed

{training_section()}

### The optimizer's share of a step

{optimizer_section()}

### Time to 91%

{time_to_91_section()}

## Prediction speed

{prediction_section()}

## Deployment

{deployment_section()}

## Limited processors

{limits_section()}

## Busy cores

{busy_section()}

## Scripts

- [`write_tables.py`](write_tables.py) writes this page, [recipes.md](recipes.md) and the
  [model card](../toolkit/weights/README.md): `python -m results.write_tables`.
- [`choose_calibration.py`](choose_calibration.py) measures every way of calibrating int8 on validation images:
  `python -m results.choose_calibration runs/NAME/best.pt --json results/calibration.json`.
- [`measure_page.py`](measure_page.py) measures the web page in Chromium: `python -m results.measure_page FOLDER`;
  [`draw_page.py`](draw_page.py) draws page.png.
- [`serve_load.py`](serve_load.py) puts `cifar serve` and a plain FastAPI application ([`serve_fastapi.py`](serve_fastapi.py))
  under load by wrk: `python results/serve_load.py`.
- [`optimizer_share.py`](optimizer_share.py) measures the optimizer's share of a training step:
  `python -m results.optimizer_share`.
- [`time_to_91.py`](time_to_91.py) compares the time of `fast` with that of the preset before Muon,
  [`fast-sgd.toml`](fast-sgd.toml): `python -m results.time_to_91`.
- [`attack_files.py`](attack_files.py) and [`attack_models.py`](attack_models.py) mutate pictures, checkpoints and models, and report
  the outcomes, the worst time and the worst memory: `python -m results.attack_files`, `python -m results.attack_models`.
- [`kill_training.py`](kill_training.py) kills a training run at random moments, checks that its checkpoints load, and
  compares the resumed run, weight by weight, with an uninterrupted one: `python -m results.kill_training`.
"""


def shipped_section() -> str:
    run, evaluation = read(WEIGHTS / "summary.json"), read(WEIGHTS / "evaluation.json")
    rows = [[name, f"{value:.2%}"] for name, value in evaluation["per_class_accuracy"].items()]
    return f"""`{run["model"]}`, recipe `{shipped_preset()["preset"]}`, all {
        run["train_images"]:,} training images, last of {run["epochs"]}
epochs. Test accuracy **{evaluation["accuracy"]:.2%}** ({evaluation["correct"]:,} of {
        evaluation["images"]:,}); training accuracy without
augmentation {run["last"]["train_accuracy"]:.2%}; expected calibration error {
        evaluation["calibration_error"]:.4f} (15 bins).

{table(["class", "test accuracy"], rows)}

{
        sources(
            command="cifar evaluate toolkit/weights/model.onnx --json",
            files=["../toolkit/weights/evaluation.json", "../toolkit/weights/summary.json"],
            machine=machine_of_run(run),
            n=f"1 (seed {run['seed']})",
        )
    }"""


def machine_of_run(summary: dict[str, Any]) -> str:
    device = re.sub(r"\b1 threads", "1 thread", summary["device"])
    return f"{device}, {summary['precision']}; torch {summary['libraries']['torch']}"


def shipped_preset() -> dict[str, Any]:
    """The line of `presets.json` that the shipped model belongs to."""
    (line,) = (line for line in read(RESULTS / "presets.json") if "toolkit/weights" in line["runs"])
    return dict(line)


def presets_section() -> str:
    lines = read(RESULTS / "presets.json")
    headings = ["preset", "test accuracy", "std", "min", "n", "training images", "epochs", "time per run", "machine"]
    details = [
        f"- `{line['preset']}`: `{line['command']}`; "
        + (", ".join(f"[`{run}/`](../{run}/)" for run in line["runs"]) or NOT_MEASURED)
        + "".join(map(validation_sentence, line["runs"]))
        + (f". {line['note']}" if "note" in line else "")
        for line in lines
    ]
    return f"""Test accuracy of the last epoch, or, where 5,000 of the 50,000 images were held out for validation, of the epoch with the
highest validation accuracy. The time is a range where the seeds differ by more than a third.

{table(headings, map(preset_row, lines))}

{chr(10).join(details)}"""


def validation_sentence(run: str) -> str:
    """What a run's validation images show; empty if it had none."""
    summary = read(ROOT / run / "summary.json")
    best, last = summary["best"], summary["last"]
    if best["validation"] is None:
        return ""
    epochs = [json.loads(line) for line in (ROOT / run / "metrics.jsonl").read_text().splitlines()]
    middle = epochs[len(epochs) // 2 - 1]
    return (
        f". Highest validation accuracy {best['validation']['accuracy']:.2%}, after epoch {best['epoch']}; after "
        f"epoch {middle['epoch']}, half of the run, {middle['val_accuracy']:.2%}; after the last epoch "
        f"{last['val_accuracy']:.2%}, and {last['train_accuracy']:.2%} of the training images, without augmentation: "
        f"a generalization gap of {100 * last['generalisation_gap']:.1f} points "
        f"([learning curves](../{run}/curves.png), [every epoch](../{run}/metrics.jsonl))"
    )


def preset_row(line: dict[str, Any]) -> list[str]:
    if not line["runs"]:
        return [f"`{line['preset']}`", NOT_MEASURED, "", "", "0", "", "", "", ""]
    summaries = [read(ROOT / run / "summary.json") for run in line["runs"]]
    accuracies = [read(ROOT / run / "evaluation.json")["accuracy"] for run in line["runs"]]
    return [
        f"`{line['preset']}`",
        f"**{statistics.mean(accuracies):.2%}**",
        format_std(accuracies, 2),
        f"{min(accuracies):.2%}",
        str(len(accuracies)),
        f"{summaries[0]['train_images']:,}",
        str(summaries[0]["epochs"]),
        format_seconds([summary["training_seconds"] for summary in summaries]),
        machine_of_run(summaries[0]),
    ]


def picture_graph_section() -> str:
    found = [read(RESULTS / f"export-picture-{precision}.json")["figures"] for precision in ("fp32", "fp16", "int8")]
    rows = [
        [
            figures["precision"],
            f"{figures['pixels_differing']} of {figures['pixels_compared']:,}, by {figures['largest_pixel_difference']}",
            f"{figures['test_accuracy']:.2%}",
            format_difference(figures["max_logit_difference"]),
            str(figures["differing_labels"]),
            format_bytes(figures["bytes"]),
        ]
        for figures in found
    ]
    headings = ["precision", "levels that differ", "test accuracy", "largest logit difference", "labels that differ"]
    lines = sources(
        command="cifar export OUT.onnx --checkpoint toolkit/weights/checkpoint.pt --input picture --precision P --json",
        files=[f"export-picture-{figures['precision']}.json" for figures in found],
        machine="Intel(R) Xeon(R) Processor, 2 cores; Pillow 13.0",
        n="37 synthetic pictures of odd sizes, and the test images fed one by one as pictures",
    )
    return f"""The shipped checkpoint, exported with `--input picture`: the pixels that the graph computes, compared with the picture
rule, and its outputs, compared with PyTorch's.

{table([*headings, "file"], rows)}

{lines}"""


def own_pictures_section() -> str:
    found = read(RESULTS / "own-pictures.json")
    rows = []
    for row in found["rows"]:
        accuracies = row["accuracies"]
        figures = [f"**{statistics.mean(accuracies):.1%}**", format_std(accuracies, 1), f"{min(accuracies):.1%}"]
        rows.append([row["start"], f"`{row['command']}`", *figures, format_seconds(row["training_seconds"])])
    headings = ["start", "command", "test accuracy", "std", "min", "time per run"]
    lines = sources(
        command="each row's, then cifar evaluate FOLDER --json",
        files=["own-pictures.json"],
        machine=found["machine"],
        n="3 (seeds 0 to 2)",
    )
    return f"""{found["data"]} {found["note"]}

{table(headings, rows)}

{lines}"""


def folder_section() -> str:
    found = read(RESULTS / "folder-reading.json")
    counts, same = found["pictures"], found["same_classes"] and all(found["same_set"].values())
    decoded = {"first": "first: the files are decoded", "second": "second: from the cache folder"}
    rows = [
        [decoded[name], f"{seconds['wall']:.1f} s", f"{seconds['processor']:.1f} s"]
        for name, seconds in found["seconds"].items()
    ]
    lines = sources(
        command="python -m results.cifar10_folder FOLDER",
        files=["folder-reading.json"],
        machine=f"AMD EPYC, {found['cores']} core at a load of {found['load_average']}; Pillow {found['pillow']}",
        n="1",
    )
    return f"""CIFAR-10 written out as {counts["train"]:,} training and {counts["test"]:,} test pictures in PNG files of 32x32 pixels, and read
by `--data FOLDER`: {"the same classes and, as a set, the same labeled tensors" if same else "other tensors"} as from the batches. The wall time is that of a
busy machine.

{table(["reading", "wall time", "processor time"], rows)}

{lines}"""


def page_section() -> str:
    rows = []
    for name, classes in (("page.json", "the shipped model"), ("page-own-classes.json", "a model of other classes")):
        (found,) = read(RESULTS / name)["models"]
        rows.append(
            [
                classes,
                f"{found['page_bytes'] / 1e6:.1f} MB",
                f"{found['seconds_until_ready']:.1f} s",
                f"{found['network_milliseconds']:.0f} ms",
                format_difference(found["largest_logit_difference"]),
                str(found["labels_that_differ"]),
            ]
        )
    page = read(RESULTS / "page.json")
    headings = ["model", "page", "until ready", "time per picture", "largest logit difference", "labels that differ"]
    lines = sources(
        command="python -m results.measure_page FOLDER [MODEL]",
        files=["page.json", "page-own-classes.json"],
        machine=f"{page['machine']}, {page['cores']} cores, load average {page['load_average']}",
        n=f"{page['pictures']} pictures; medians of {page['rounds']} fresh tabs",
    )
    return f"""The page in {page["browser"]}, opened from the disk; logits compared with `Classifier` on the same pixels.

{table(headings, rows)}

{lines}"""


def server_section() -> str:
    found = read(RESULTS / "serve-load.json")
    names = {"cifar": "`cifar serve`", "fastapi": "a plain FastAPI application"}
    rows = [
        [
            names[load["server"]],
            str(load["clients"]),
            f"{load['p50_ms']:.1f} ms",
            f"{load['p99_ms']:.1f} ms",
            f"{load['pictures_per_second']:,.0f}",
            str(load["lost"]),
            f"{load['memory_start'] / 1e6:.0f} to {load['memory_end'] / 1e6:.0f} MB",
        ]
        for load in found["loads"]
    ]
    soak, seconds = found["soak"], found["seconds"]
    lines = sources(
        command=f"python results/serve_load.py --seconds {seconds} --soak {soak['seconds']}",
        files=["serve-load.json"],
        machine=f"AMD EPYC, {found['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in found["libraries"].items()),
        n=f"{seconds} seconds for each row",
    )
    headings = ["server", "clients", "p50", "p99", "pictures per second", "requests lost", "memory"]
    return f"""A {
        found["picture"]
    }, sent again and again over open connections by wrk on the same machine. With 16 clients, `cifar serve` serves
{found["speedup_at_16_clients"]:.2f} times as many requests as the plain application. With one bad picture in ten for {
        soak["seconds"]
    } seconds: {soak["requests"]:,} requests, {soak["lost"]} lost, {soak["refused"]:,} refused, memory {
        soak["memory_start"] / 1e6:.0f} to {soak["memory_end"] / 1e6:.0f} MB.

{table(headings, rows)}

{lines}"""


def trials_section() -> str:
    """What was tried, its figure and the decision."""
    headings = ["row", "tried", "recipe changes", "epochs", "validation accuracy or speed", "n", "decision"]
    trials = read(RESULTS / "trials.json")
    numbers = {trial["what"]: number for number, trial in enumerate(trials, start=1)}
    rows = [[str(numbers[trial["what"]]), *trial_row(trial, numbers)] for trial in trials]
    return f"""Chosen on the validation images. The changes are relative to the preset or the row that is named first; where none is
named, only the listed keys were recorded. A difference smaller than the spread over seeds decides nothing; for n = 1 that
spread was not measured. For a trial of speed, n is the number of precisions and batch sizes, and the figure the smallest
and the largest ratio of images per second.

{table(headings, rows)}

- Command: `cifar train` with the flags of the recipe changes (see [recipes.md](recipes.md))
- Machine: not recorded; accuracies do not depend on it beyond rounding
- JSON: [`trials.json`](trials.json), copied from the output of `cifar train`; the runs were not kept"""


def trial_row(trial: dict[str, Any], numbers: dict[str, int]) -> list[str]:
    """The cells of a trial; `numbers` are the row numbers of all trials, by `what`."""
    if "speed" in trial:
        ratios = speed_ratios(**trial["speed"])
        figure = f"{min(ratios):.2f} to {max(ratios):.2f} times `{trial['speed']['base']}`"
        return [trial["what"], "-", "-", figure, f"{len(ratios)} pairs", trial["decision"]]
    accuracies = trial["val_accuracy"]
    spread = f" (std {format_std(accuracies, 2)})" if len(accuracies) > 1 else ""
    changes = ", ".join(f"`{name} = {value}`" for name, value in flatten(trial["changes"]).items())
    if trial["base"]:
        base = f"row {numbers[trial['base']]}" if trial["base"] in numbers else f"`{trial['base']}`"
        changes = f"{base} with {changes}" if changes else base
    figure = f"{statistics.mean(accuracies):.2%}{spread}"
    return [trial["what"], changes, str(trial["epochs"]), figure, str(len(accuracies)), trial["decision"]]


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Recipe keys without their tables."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def speed_ratios(file: str, *, tried: str, base: str) -> list[float]:
    """Images per second of each tried side over its base, at every precision and batch size of a benchmark."""
    speeds = {
        (result.side.name, timing.batch_size): timing.images_per_second
        for result in read_benchmark(file).results
        for timing in result.timings
    }
    return [
        speed / speeds[name.replace(tried, base, 1), size]
        for (name, size), speed in speeds.items()
        if name.startswith(tried)
    ]


def precisions_section() -> str:
    files = {
        "fp32": "../toolkit/weights/export.json",
        "fp16": "export-fp16.json",
        "int8, for CPUs": "export-int8.json",
        "int8, for GPUs": "export-int8-gpu.json",
    }
    headings = ["precision", "test accuracy", "points lost", "largest logit difference", "labels that differ", "file"]
    reports = {name: read(RESULTS / file) for name, file in files.items()}
    rows = [[name, *precision_cells(report["figures"])] for name, report in reports.items()]
    rejected = ", ".join(name for name, report in reports.items() if not report["passed"])
    lines = sources(
        command="cifar export model.onnx --checkpoint toolkit/weights/checkpoint.pt --precision PRECISION --json",
        files=list(files.values()),
        machine="processor not recorded; ONNX Runtime on the CPU",
        n="1 model, 10,000 test images",
    )
    return f"""The shipped model. Points are percentage points of test accuracy; the gate allows a loss of 0.3. Rejected by the gate, so
not written: {rejected or "none"}. In int8 the whole network computes with integers; the scaling of the pixels and the softmax stay
in float. `--target gpu` gives the last row.

{table(headings, rows)}

{lines}"""


def precision_cells(figures: dict[str, Any]) -> list[str]:
    return [
        f"{figures['test_accuracy']:.2%}",
        f"{100 * (figures['reference_correct'] - figures['test_correct']) / figures['test_images']:.2f}",
        format_difference(figures["max_logit_difference"]),
        str(figures["differing_labels"]),
        format_bytes(figures["bytes"]),
    ]


def calibration_section() -> str:
    found = read(RESULTS / "calibration.json")
    exact, *others = found["results"]
    ways: dict[tuple[str, bool, int], list[dict[str, Any]]] = {}
    for result in others:
        ways.setdefault((result["method"], result["reduce_range"], result["images"]), []).append(result)
    rows = [
        [
            method,
            "7 bits" if reduce_range else "8 bits",
            str(images),
            f"{statistics.mean(result['accuracy'] for result in results):.2%}",
            format_difference(statistics.mean(result["mean_logit_difference"] for result in results)),
            format_difference(statistics.mean(result["largest_logit_difference"] for result in results)),
        ]
        for (method, reduce_range, images), results in ways.items()
    ]
    headings = [
        "method",
        "weights",
        "images",
        "validation accuracy",
        "mean logit difference",
        "largest logit difference",
    ]
    draws = len(next(iter(ways.values())))
    versions = ", ".join(f"{name} {version}" for name, version in found["libraries"].items())
    lines = sources(
        command="python -m results.choose_calibration runs/NAME/best.pt --json results/calibration.json",
        files=["calibration.json"],
        machine=f"processor not recorded; {versions}",
        n=f"{draws} draws of calibration images, {exact['validation_images']:,} validation images",
    )
    return f"""Ranges of activations are chosen from training images and compared on validation images. The network was trained by the
recipe `fast` of that time (SGD) for {found["epoch"]} epochs; it has {exact["accuracy"]:.2%} in float32. Differences are from the same
network in float32; figures are means over the draws of calibration images.

{table(headings, rows)}

One draw differs from the next by a tenth of a point or more, so the methods are equally accurate. ONNX Runtime's entropy
method ends at the same ranges as minmax, and percentile has larger errors at worst: `export` uses minmax. It uses 512 images;
128 did equally well. For CPUs it uses 7 bits although 8 are better, because processors without VNNI overflow with 8.

{lines}"""


def training_section() -> str:
    found = read_benchmark("bench-train.json")
    by_name: dict[str, dict[int, Result]] = {}
    for result in found.results:
        for timing in result.timings:
            by_name.setdefault(result.side.name, {})[timing.batch_size] = result
    sizes = sorted({size for results in by_name.values() for size in results})
    shown = 128  # the batch size of start, first steps and memory
    rows = [
        [
            name,
            *(f"{t.images_per_second:,.0f} ({t.ratio:.2f})" for size in sizes for t in results[size].timings),
            f"{results[shown].start_seconds:.1f} s",
            f"{results[shown].figures['first_steps_seconds']:.1f} s",
            f"{(results[shown].memory or 0) / 1e6:,.0f} MB",
        ]
        for name, results in by_name.items()
    ]
    headings = ["step", *(f"batch {size}" for size in sizes), "start", "first 5 steps", "peak memory"]
    lines = sources(
        command="cifar bench train --device cpu --json",
        files=["bench-train.json"],
        machine=f"{machine_of(found)}; a virtual machine",
        n=f"{rounds_of(found)} rounds per step and batch size, up to {widest_spread(found):.0%} of the median apart",
    )
    return f"""`{found.settings["model"]}` on random images: images per second, and in brackets the ratio to the conventional loop (`DataLoader`,
torchvision's transforms, float32). Start, first steps (compilation included) and memory are those of batch size {shown}.
Compiled steps have since been removed from the toolkit.

{table(headings, rows)}

{lines}"""


def optimizer_section() -> str:
    files = [f"optimizer-share/{name}.json" for name in ("one-thread", "two-threads")]
    found = [read(RESULTS / file) for file in files]
    rows = []
    for one, two in zip(*(figures["rows"] for figures in found), strict=True):
        size = one["crop_size"]
        cells = [
            f"{row['optimizer_ms']:.1f} of {row['step_ms']:.0f} ms ({row['optimizer_ms'] / row['step_ms']:.1%})"
            for row in (one, two)
        ]
        rows.append([one["optimizer"], f"{size}x{size}", *cells])
    first = found[0]
    lines = sources(
        command="OMP_NUM_THREADS=1 python -m results.optimizer_share --output results/optimizer-share/one-thread.json",
        files=files,
        machine=f"{first['device'].split(',')[0]}, {first['precision']}; torch {first['torch']}",
        n=f"{first['steps']} steps per optimizer and crop size, in turn",
    )
    return f"""`resnet20` with batches of {first["batch_size"]}: medians.

{table(["optimizer", "crops", "1 thread", "2 threads"], rows)}

{lines}"""


def time_to_91_section() -> str:
    files = ["time-to-91/one-round.json", "time-to-91/two-rounds.json"]
    runs = [read(RESULTS / file) for file in files]
    rows = []
    for run in runs:
        for optimizer, side in run["sides"].items():
            medians = [
                statistics.median(times[name] for times in side["rounds"])
                for name in ("epoch_24", "epoch_32", "outside_epochs")
            ]
            counts = f"{side['epochs_24']} + {side['epochs_32']}"
            times = [f"{seconds:.0f} s" for seconds in medians]
            whole = f"{side['seconds'] / 60:.0f} min"
            rows.append([str(len(side["rounds"])), f"`{side['recipe']}`", optimizer, counts, *times, whole])
    headings = ["rounds", "recipe", "optimizer", "epochs, 24x24 + 32x32"]
    headings += ["epoch, 24x24", "epoch, 32x32", "rest", "whole run"]
    ratios = " and ".join(f"**{run['ratio']:.1f}**" for run in runs)
    notes = "\n".join(f"- Rounds: {len(run['sides']['Muon']['rounds'])}. {run['note']}" for run in runs)
    lines = sources(
        command="python -m results.time_to_91 --rounds ROUNDS --output FILE",
        files=files,
        machine=f"{runs[0]['device']}, a different machine for each run; torch {runs[0]['torch']}",
        n="the first column, the two sides in turn; medians",
    )
    return f"""The preset `fast` and the same preset before Muon, from process start to the end of the run, extrapolated from single
epochs. Both reach 91% on the test set: `fast` in three seeds, the preset before Muon in the one that was trained. Before
Muon it took {ratios} times as long, in two runs of the benchmark; neither machine was quiet:

{notes}

{table(headings, rows)}

{lines}"""


def rounds_of(benchmark: BenchmarkResult) -> int:
    """The number of rounds, the same for all sides."""
    (rounds,) = {len(timing.rounds) for result in benchmark.results for timing in result.timings}
    return rounds


def widest_spread(benchmark: BenchmarkResult) -> float:
    """The largest distance between two rounds of one side, as a share of their median."""
    timings = [timing for result in benchmark.results for timing in result.timings]
    return max((max(timing.rounds) - min(timing.rounds)) / timing.images_per_second for timing in timings)


def prediction_section() -> str:
    found = read_benchmark("bench-predict.json")
    single, folder = found.results[:2], found.results[2:]
    pictures = found.settings["pictures"]
    rows = [
        [result.side.name, f"{result.timings[0].p50_ms:,.0f} ms", f"{result.timings[0].ratio:.2f}", megabytes(result)]
        for result in single
    ]
    rows += [
        [
            result.side.name,
            f"{result.timings[0].images_per_second:,.0f} pictures/s",
            f"{result.timings[0].ratio:.2f}",
            megabytes(result),
        ]
        for result in folder
    ]
    rows.append(["folder, cifar predict without its start", "", f"{found.figures['ratio_after_start']:.2f}", ""])
    lines = sources(
        command="cifar bench predict --json",
        files=["bench-predict.json"],
        machine=machine_of(found),
        n=f"{len(single[0].timings[0].rounds)} rounds of one picture, {len(folder[0].timings[0].rounds)} of the folder",
    )
    return f"""`cifar predict` as a whole process, imports included, compared with a bare script of NumPy, Pillow and ONNX Runtime that
predicts one picture at a time, and with ONNX Runtime alone, which is fed with arrays in batches and decodes nothing. The folder
holds {pictures:,} PNG files. Ratios are of speeds: to the bare script for one picture, to ONNX Runtime alone for the folder.
"Without its start": the time that `cifar predict` takes for one picture is subtracted from its time for the folder.

{table(["program", "time or speed", "ratio", "peak memory"], rows)}

{lines}"""


def megabytes(result: Result) -> str:
    return "" if result.memory is None else f"{result.memory / 1e6:.0f} MB"


def deployment_section() -> str:
    found = read_benchmark("bench-deploy.json")
    sizes = [timing.batch_size for timing in found.results[0].timings]
    headings = ["side", "test accuracy", "file", "start", "memory", "one image: p50 / p95 / p99"]
    headings += [f"images/s, batch {size}" for size in sizes]
    lines = sources(
        command="cifar bench deploy fp32.onnx fp16.onnx int8.onnx --checkpoint toolkit/weights/checkpoint.pt --plot results/bench-deploy.png --json",
        files=["bench-deploy.json"],
        machine=machine_of(found),
        n=f"{rounds_of(found)} rounds per side and batch size; percentiles over all calls; 10,000 test images",
    )
    return f"""The shipped model in every precision. Start is the time to open the model in a process that has imported its libraries; memory
is what the process allocated from then on.

{table(headings, map(deployment_row, found.results))}

![Speed and latency of each side](bench-deploy.png)

CUDA and TensorRT: not measured.

{lines}"""


def deployment_row(result: Result) -> list[str]:
    one = timing_of(result, 1)
    return [
        result.side.name.replace(", cpu", ""),
        f"{result.figures['accuracy']:.2%}",
        format_bytes(result.figures["file_bytes"]),
        f"{1e3 * (result.start_seconds or 0):,.0f} ms",
        f"{(result.memory or 0) / 1e6:,.0f} MB",
        f"{one.p50_ms:.2f} / {one.p95_ms:.2f} / {one.p99_ms:.2f} ms",
        *(f"{timing.images_per_second:,.0f}" for timing in result.timings),
    ]


def timing_of(result: Result, batch_size: int) -> Timing:
    return next(timing for timing in result.timings if timing.batch_size == batch_size)


LIMITS = {
    "two-cores": "both cores",
    "one-core": "one core (`cpuset.cpus`)",
    "quota-1.5": "a quota of 1.5 cores",
    "quota-1": "a quota of 1 core",
    "quota-0.5": "a quota of half a core",
}


def limits_section() -> str:
    found = {name: read_benchmark(f"limits/{name}.json") for name in LIMITS}
    rows = []
    for name, benchmark in found.items():
        cells = [LIMITS[name], str(benchmark.cores)]
        for batch_size in (1, 64):
            for kind in ("onnx", "bare"):
                result = next(r for r in benchmark.results if r.side.options["kind"] == kind)
                timing = timing_of(result, batch_size)
                cells.append(f"{timing.images_per_second:,.0f} ({timing.p99_ms:.1f} ms)")
        rows.append(cells)
    headings = ["limit", "threads", "batch 1", "batch 1, bare session", "batch 64", "batch 64, bare session"]
    first = found["two-cores"]
    lines = sources(
        command="cifar bench deploy fp32.onnx int8.onnx --batch-size 1 --batch-size 64 --json",
        files=[f"limits/{name}.json" for name in LIMITS],
        machine=f"{machine_of(first)}; Linux control groups, as containers use them",
        n=f"{rounds_of(first)} rounds per limit, side and batch size",
    )
    return f"""Images per second of the float32 model, and in brackets the 99th percentile of a call, in a process that may not use the whole
machine. A bare session starts a thread per core of the machine, and idle threads spin. The toolkit's session starts a thread
per core that the process may use, and idle threads soon sleep. (`taskset` does not show the difference: a bare session
resets the affinity.)

{table(headings, rows)}

{lines}"""


def busy_section() -> str:
    found = read(RESULTS / "busy-neighbours.json")
    default, idle, busy = (statistics.median(seconds) for seconds in found["seconds"].values())
    rows = [
        ["alone, with libgomp's default spinning", f"{default:.1f} s", ""],
        ["alone", f"{idle:.1f} s", "1.00"],
        [f"beside {found['neighbors']} spinning processes", f"{busy:.1f} s", f"{busy / idle:.2f}"],
    ]
    lines = sources(
        command="python -m results.busy_neighbours --rounds 1 --output results/busy-neighbours.json",
        files=["busy-neighbours.json"],
        machine=f"{found['machine']}, {found['cores']} cores",
        n=str(len(found["seconds"]["busy"])),
    )
    return f"""`cifar demo`, start to end, alone and beside other processes that keep both cores busy.

{table(["", "time", "ratio"], rows)}

{lines}"""


def recipes_page() -> str:
    """The reference of recipe keys, from the recipe itself."""
    presets = {name: load_recipe(name).as_dict() for name in sorted(preset_names(), key=lambda n: n != "reference")}
    rows, differences = [], []
    for key in recipe_keys():
        values = [toml_value(v[key.table][key.name] if key.table else v[key.name]) for v in presets.values()]
        rows.append([f"`{key.name}`", key.table and f"`[{key.table}]`", toml_value(default_of(key)), key.help])
        if len(set(values)) > 1:
            differences.append([f"`{key.name}`", *values])
    return f"""# Recipes

A recipe holds every choice of a training run. `cifar train --recipe` takes the name of a preset, or a TOML or JSON file.
Keys that a file leaves out have their default. Each key is also a flag: `batch_size` is `--batch-size`. A run folder
holds its complete recipe in `recipe.toml`, which is a recipe file again. This page is written from the toolkit by
`python -m results.write_tables`.

## Keys

Keys without a table stand at the top of the file.

{table(["key", "table", "default", "meaning"], rows)}

## Presets

Keys in which the presets differ. `reference` has all defaults; `demo` is for the synthetic pictures of `cifar demo`;
`teacher` is the network that a recipe with distillation trains first, if `--teacher` names none.

{table(["key", *(f"`{name}`" for name in presets)], differences)}
"""


def default_of(key: Any) -> Any:
    defaults = Recipe().as_dict()
    return defaults[key.table][key.name] if key.table else defaults[key.name]


def toml_value(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def model_card() -> str:
    run, evaluation = read(WEIGHTS / "summary.json"), read(WEIGHTS / "evaluation.json")
    figures = read(WEIGHTS / "export.json")["figures"]
    teacher = read(RESULTS / "teacher-seed0" / "evaluation.json")
    preset = shipped_preset()
    rows = [[name, f"{value:.2%}"] for name, value in evaluation["per_class_accuracy"].items()]
    checkpoint = hashlib.sha256((WEIGHTS / "checkpoint.pt").read_bytes()).hexdigest()
    return f"""# Model card: the shipped `{run["model"]}`

`model.onnx` classifies a picture as one of the ten classes of CIFAR-10. `checkpoint.pt` holds the same weights for PyTorch.
Commands: `{preset["command"]}` and `cifar export`.

- **Architecture**: ResNet-20 with 1x1 convolutions in the shortcuts, {run["parameters"]:,} parameters.
- **Recipe**: the preset `{preset["preset"]}`, {run["epochs"]} epochs, seed {run["seed"]}; the metadata of the ONNX file contain the complete recipe.
- **Teacher**: distilled from a network `{run["teacher"]["model"]}` of {teacher["accuracy"]:.2%} test accuracy, trained on the same images by the preset
  `teacher`.
- **Data**: all {run["train_images"]:,} training images of CIFAR-10 (Krizhevsky, 2009), without a validation split; weights of the last epoch.
- **Test accuracy**: {evaluation["accuracy"]:.2%} ({evaluation["correct"]:,} of {evaluation["images"]:,} images), in PyTorch and in ONNX Runtime.
- **Choices**: optimizer, learning rates, distillation and the size of the crops were chosen on validation images, in trials
  of 10 and 20 epochs, and 60 epochs with distillation then compared with 76 epochs without.
- **Calibration**: expected calibration error {evaluation["calibration_error"]:.4f} (15 bins), cross-entropy {evaluation["loss"]:.4f} nats.
  The model is overconfident: its probabilities exceed its accuracy, by {100 * evaluation["calibration_error"]:.0f} points on average.
- **Parity with PyTorch**: largest logit difference {format_difference(figures["max_logit_difference"])}; labels that differ: {figures["differing_labels"]}.
- **Checksums** (SHA-256): `model.onnx` {figures["sha256"]},
  `checkpoint.pt` {checkpoint}.

{table(["class", "test accuracy"], rows)}

**Intended use**: a reference for training, exporting and verifying such a network, and a first model to try.

**Limits**: every picture gets one of the ten classes; the probability means nothing for pictures unlike those of CIFAR-10.
Pictures are reduced to 32x32 pixels. The photographs and labels of CIFAR-10 have the biases of their sources. The model was
not tested against adversarial pictures, nor for safety-critical use.
"""


if __name__ == "__main__":
    main()
