"""The README's measured figures and the model card, written from the JSON files in the repository.

`python results/measured.py` writes both anew; `test_readme.py` compares them with what this module gives.

The JSON files: beside the shipped model in `toolkit/weights/`, everything else in `results/`. `results/presets.json` says
which runs stand behind each line of the first table: folders with the `summary.json` of a run, and in `evaluation.json`
what `cifar evaluate --json` printed of it. The benchmarks' files are what `cifar bench ... --json` printed. The trials
are written by hand from what `cifar train` printed; their runs were not kept.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
WEIGHTS = ROOT / "toolkit" / "weights"
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(?s)(<!-- measured:begin -->\n).*?(<!-- measured:end -->)")
NOT_MEASURED = "not measured"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def libraries(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "cifar")


def presets() -> str:
    """Each preset's line: test accuracy over its seeds, time, hardware, command."""
    lines = read(RESULTS / "presets.json")
    rows = [preset_row(line) for line in lines]
    head = ["preset", "test accuracy", "std", "min", "n", "epochs", "time of a run", "hardware"]
    commands = "\n".join(f"- `{line['preset']}`: `{line['command']}`; {where(line)}" for line in lines)
    return f"{table(head, rows)}\n\n{commands}"


def where(line: dict[str, Any]) -> str:
    return "JSON: " + ", ".join(f"`{run}/`" for run in line["runs"]) if line["runs"] else NOT_MEASURED


def preset_row(line: dict[str, Any]) -> list[str]:
    if not line["runs"]:
        return [f"`{line['preset']}`", NOT_MEASURED, "", "", "0", "", "", ""]
    summaries = [read(ROOT / run / "summary.json") for run in line["runs"]]
    accuracies = [read(ROOT / run / "evaluation.json")["accuracy"] for run in line["runs"]]
    minutes = statistics.mean(summary["training_seconds"] for summary in summaries) / 60
    first = summaries[0]
    return [
        f"`{line['preset']}`",
        f"**{statistics.mean(accuracies):.2%}**",
        f"{statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else "-",
        f"{min(accuracies):.2%}",
        str(len(accuracies)),
        str(first["epochs"]),
        f"{minutes:.0f} min",
        f"{first['device']}, {first['precision']}, torch {first['libraries']['torch']}; {line['note']}",
    ]


def shipped_line() -> dict[str, Any]:
    """The line of `presets.json` that the shipped model belongs to."""
    (line,) = (line for line in read(RESULTS / "presets.json") if "toolkit/weights" in line["runs"])
    return dict(line)


def tried() -> str:
    """What was tried on the validation images, and what it gave."""
    rows = [
        [trial["what"], str(trial["epochs"]), f"{trial['val_accuracy']:.2%}", trial["verdict"]]
        for trial in read(RESULTS / "trials.json")
    ]
    return table(["what", "epochs", "validation accuracy", "what followed"], rows)


def shipped() -> str:
    """The shipped model in float32."""
    run, evaluation = read(WEIGHTS / "summary.json"), read(WEIGHTS / "evaluation.json")
    classes = ", ".join(f"{name} {100 * value:.1f}" for name, value in evaluation["per_class_accuracy"].items())
    return f"""**The shipped model**: `{run["model"]}`, seed {run["seed"]}, recipe `{shipped_line()["preset"]}` on all {run["train_images"]:,} training images, last of {run["epochs"]}
epochs. Test accuracy **{evaluation["accuracy"]:.2%}** ({evaluation["correct"]:,} of {evaluation["images"]:,}), training accuracy without augmentation {run["last"]["train_accuracy"]:.2%},
calibration error {evaluation["calibration_error"]:.4f} (15 bins). By class, %: {classes}.
Command: `cifar evaluate toolkit/weights/model.onnx`; JSON: `toolkit/weights/`."""


def precisions() -> str:
    """The shipped model's forms, each through the gate."""
    rows = []
    for name, path in (
        ("fp32", WEIGHTS / "export.json"),
        ("fp16", RESULTS / "export-fp16.json"),
        ("int8, for CPUs", RESULTS / "export-int8.json"),
        ("int8, for GPUs", RESULTS / "export-int8-gpu.json"),
    ):
        report = read(path)
        assert report["passed"], path
        figures = report["figures"]
        rows.append(
            [
                name,
                f"{figures['test_accuracy']:.2%}",
                f"{100 * (figures['reference_correct'] - figures['test_correct']) / figures['test_images']:.2f}",
                f"{figures['max_logit_difference']:.1e}",
                str(figures["differing_labels"]),
                f"{figures['bytes']:,}",
            ]
        )
    head = ["precision", "test accuracy", "points lost", "largest logit difference", "labels that differ", "bytes"]
    return table(head, rows)


def calibrations() -> str:
    """What each way of calibrating int8 gave on validation images, over its draws of calibration images."""
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
            f"{statistics.mean(result['mean_logit_difference'] for result in results):.3f}",
            f"{statistics.mean(result['largest_logit_difference'] for result in results):.2f}",
        ]
        for (method, reduce_range, images), results in ways.items()
    ]
    head = ["ranges by", "weights", "calibration images", "accuracy", "mean logit difference", "largest"]
    draws = len(next(iter(ways.values())))
    return f"""{table(head, rows)}

A run of `fast` with {found["epoch"]} epochs ({exact["accuracy"]:.2%} in float32), on its {exact["validation_images"]:,} validation images; means over {draws} draws of
calibration images, which alone move accuracy by a tenth of a point or more. The methods are as accurate as each other
(ONNX Runtime's entropy method ends at the same ranges as minmax), and percentile errs more at worst, so `export` takes
minmax; it takes 512 images, and 128 did no worse. For CPUs it takes 7 bits although 8 are better, because processors
without VNNI overflow with 8. Commands: `cifar train --recipe fast --epochs 12 --warmup-epochs 1`, then
`python results/choose_calibration.py runs/NAME/best.pt --json results/calibration.json`."""


def bench_train() -> str:
    """Images per second of each step at each batch size, and the ratio to the conventional loop."""
    found = read(RESULTS / "bench-train.json")
    sizes = sorted({row["variant"]["batch_size"] for row in found["rows"]})
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for row in found["rows"]:
        by_name.setdefault(step_name(row["variant"]), {})[row["variant"]["batch_size"]] = row
    rows = []
    for name, cells in by_name.items():
        middle = cells[128]
        rows.append(
            [
                name,
                *(speed_and_ratio(cells[size]) for size in sizes),
                f"{middle['startup_seconds']:.1f} s",
                f"{middle['first_steps_seconds']:.1f} s",
                f"{middle['peak_memory'] / 1e6:,.0f} MB",
            ]
        )
    head = ["images/s (ratio)", *(f"batch {size}" for size in sizes), "start", "first 5 steps", "peak memory"]
    return f"""{table(head, rows)}

Start, first steps (which compile) and memory at batch 128. A virtual machine, whose speed moved by up to a fifth between
the three rounds: the medians count, each round is in the JSON. Hardware: {found["device"]}; {libraries(found["libraries"])}.
Command: `cifar bench train --device cpu`; JSON: `results/bench-train.json`."""


def step_name(variant: dict[str, Any]) -> str:
    if variant["step"] == "conventional":
        return "conventional loop"
    memory = "" if variant["keeps_freed_memory"] else ", freed memory not kept"
    return f"{variant['step']}, {variant['precision']}{memory}"


def speed_and_ratio(row: dict[str, Any]) -> str:
    return f"{row['images_per_second']:,.0f} ({row['ratio']:.2f})"


def bench_predict() -> str:
    """One picture and a folder, beside the bare libraries."""
    found = read(RESULTS / "bench-predict.json")
    one = f"{found['pictures']:,} pictures"
    rows = [
        ["one picture, whole process", "bare script", f"{1e3 * found['single_bare']['seconds']:.0f} ms", "1"],
        ["", "`cifar predict`", f"{1e3 * found['single']['seconds']:.0f} ms", f"{found['single_ratio']:.2f}"],
        [one, "ONNX Runtime by itself", f"{found['runtime_pictures_per_second']:,.0f} a second", "100%"],
        ["", "bare script, one at a time", f"{found['bare_pictures_per_second']:,.0f} a second", share(found, "bare_")],
        ["", "`cifar predict`", f"{found['pictures_per_second']:,.0f} a second", f"{found['share']:.0%}"],
        ["", "`cifar predict` without its start", "", f"{found['share_after_start']:.0%}"],
    ]
    return f"""{table(["prediction", "by", "time or speed", "ratio or share"], rows)}

{found["cores"]} cores; {libraries(found["libraries"])}. ONNX Runtime by itself gets arrays, with nothing to decode. Peak memory over the folder: {found["folder"]["peak_memory"] / 1e6:.0f} MB.
Command: `cifar bench predict`; JSON: `results/bench-predict.json`."""


def share(found: dict[str, Any], prefix: str) -> str:
    return f"{found[prefix + 'pictures_per_second'] / found['runtime_pictures_per_second']:.0%}"


def bench_deploy() -> str:
    """Every form of the shipped model side by side."""
    found = read(RESULTS / "bench-deploy.json")
    rows = []
    for result in found["sides"]:
        timings = {timing["batch_size"]: timing for timing in result["timings"]}
        one = timings[1]
        rows.append(
            [
                side_name(result["side"]),
                f"{result['accuracy']:.2%}",
                f"{result['file_bytes'] / 1e3:,.0f} kB",
                f"{result['start_ms']:,.0f} ms",
                f"{result['memory'] / 1e6:,.0f} MB",
                f"{one['p50_ms']:.2f} / {one['p95_ms']:.2f} / {one['p99_ms']:.2f} ms",
                *(f"{timings[size]['images_per_second']:,.0f}" for size in found["batch_sizes"]),
            ]
        )
    head = ["side", "test accuracy", "file", "session start", "memory", "one image: p50 / p95 / p99"]
    head += [f"images/s, batch {size}" for size in found["batch_sizes"]]
    return f"""{table(head, rows)}

Hardware: {found["device"]}; {libraries(found["libraries"])}. CUDA and TensorRT: not measured.
Command: `cifar bench deploy fp32.onnx fp16.onnx int8.onnx`; JSON: `results/bench-deploy.json`, picture: `results/bench-deploy.png`."""


LIMITS = {
    "two-cores": "both cores",
    "one-core": "one core (`cpuset.cpus`)",
    "quota-1.5": "a quota of 1.5 cores",
    "quota-1": "a quota of 1 core",
    "quota-0.5": "a quota of half a core",
}


def limited() -> str:
    """The float32 model where a process may not use the whole machine: the toolkit's session and one by default."""
    found = {name: read(RESULTS / "limits" / f"{name}.json") for name in LIMITS}
    rows = []
    for name, result in found.items():
        cells = [LIMITS[name], str(result["cores"])]
        for batch_size in (1, 64):
            for kind in ("onnx", "bare"):
                side = next(side for side in result["sides"] if side["side"]["kind"] == kind)
                timing = next(timing for timing in side["timings"] if timing["batch_size"] == batch_size)
                cells.append(f"{timing['images_per_second']:,.0f} ({timing['p99_ms']:.1f} ms)")
        rows.append(cells)
    head = ["the process may use", "threads", "batch 1", "bare session", "batch 64", "bare session"]
    first = found["two-cores"]
    return f"""{table(head, rows)}

A bare session takes a thread for each core of the machine and lets them spin; the toolkit's takes what the process may
use, and lets them sleep soon. (`taskset` does not show this: a bare session then takes back the cores it was denied.)
Hardware: {first["device"]}; {libraries(first["libraries"])}; Linux control groups, as containers have them.
Command, in each group and without the data set: `cifar bench deploy fp32.onnx int8.onnx --batch-size 1 --batch-size 64`; JSON: `results/limits/`."""


def side_name(side: dict[str, str]) -> str:
    if side["kind"] in ("eager", "compiled"):
        return f"PyTorch {side['kind']}"
    return Path(side["file"]).stem + (", bare session" if side["kind"] == "bare" else "")


def measured() -> str:
    """The README's section on what was measured."""
    return f"""{shipped()}

**Recipes**, each on all 50,000 training images, last epoch; a standard deviation needs more than one seed:

{presets()}

Nothing was measured on a GPU, and not every table on the same machine: compare within a table. **Tried on the validation images** (one seed each; the spread over seeds was not measured):

{tried()}

**Precisions** of the shipped model, each through the gate, run on the CPU:

{precisions()}

Command: `cifar export model.onnx --checkpoint toolkit/weights/checkpoint.pt --precision int8`, for GPUs with
`--target gpu`; JSON: `toolkit/weights/export.json`, `results/export-*.json`. In int8 the whole network computes with
integers; what stays in float is the scaling of the pixels and the softmax.

**How int8 is calibrated** was chosen on validation images:

{calibrations()}

**Training speed** of `resnet20`:

{bench_train()}

**Prediction speed**:

{bench_predict()}

**Deployment**: images a second are medians of five rounds in which the sides take turns, latencies are over all calls:

{bench_deploy()}

**Limited processors**: images a second of the float32 model, and p99 of a call:

{limited()}
"""


def card() -> str:
    """The model card."""
    run, evaluation = read(WEIGHTS / "summary.json"), read(WEIGHTS / "evaluation.json")
    export = read(WEIGHTS / "export.json")
    rows = [[name, f"{value:.2%}"] for name, value in evaluation["per_class_accuracy"].items()]
    checkpoint = hashlib.sha256((WEIGHTS / "checkpoint.pt").read_bytes()).hexdigest()
    return f"""# Model card: the shipped `{run["model"]}`

`model.onnx` names what is in a picture: one of the ten classes of CIFAR-10. `checkpoint.pt` holds the same weights for
PyTorch. Made by `{shipped_line()["command"]}` ({shipped_line()["note"]}) and `cifar export`.

- **Architecture**: ResNet-20 with 1x1 convolutions in the shortcuts, {run["parameters"]:,} parameters.
- **Recipe**: the preset `{shipped_line()["preset"]}`, {run["epochs"]} epochs, seed {run["seed"]}; it stands in full in the ONNX file's metadata.
- **Data**: all {run["train_images"]:,} training images of CIFAR-10 (Krizhevsky, 2009); none held out, last epoch kept.
- **Test accuracy**: {evaluation["accuracy"]:.2%} ({evaluation["correct"]:,} of {evaluation["images"]:,} images), in PyTorch and in ONNX Runtime.
  The small crops were chosen on validation images; random erasing was taken over from its paper;
  learning rate and weight decay come from earlier trials whose test accuracy was known, so indirectly it chose those.
- **Calibration**: expected calibration error {evaluation["calibration_error"]:.4f} (15 bins), cross-entropy {evaluation["loss"]:.4f} nats.
- **Parity**: no logit differs from PyTorch's by more than {export["figures"]["max_logit_difference"]:.1e}; labels that differ: {export["figures"]["differing_labels"]}.
- **Checksums** (SHA-256): `model.onnx` {export["figures"]["sha256"]},
  `checkpoint.pt` {checkpoint}.

{table(["class", "test accuracy"], rows)}

**Intended use**: a reference for training, exporting and verifying such a network, and a first model to try. **Limits**:
any picture at all gets one of the ten classes, with a probability that says nothing about pictures unlike CIFAR-10's.
Pictures are seen at 32x32 pixels. CIFAR-10's photographs and labels have the biases of their sources. It has not been
tested against deliberate disturbance, nor for any use in which a mistake does harm.
"""


def rewritten(readme: str, text: Callable[[], str] = measured) -> str:
    """The README with its section of figures written anew."""
    return BLOCK.sub(lambda match: match[1] + text() + match[2], readme)


if __name__ == "__main__":
    (WEIGHTS / "README.md").write_text(card())
    README.write_text(rewritten(README.read_text()))
