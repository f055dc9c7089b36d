"""Train, export through the gate and predict, from Python.

    python train_export_predict.py [DATA] [RECIPE] [FOLDER]

DATA is a folder with CIFAR-10, or `demo` (the default) for synthetic pictures; RECIPE a preset or a file.
"""

import sys
from pathlib import Path

from toolkit.data.dataset import write_samples
from toolkit.deploy import export_onnx
from toolkit.inference import Classifier
from toolkit.training import EpochRecord, create_run, find_data, load_recipe, train


def print_epoch(record: EpochRecord) -> None:
    print(f"epoch {record.epoch}: loss {record.train_loss:.3f}, validation accuracy {record.val_accuracy}")


def main(data: str = "demo", recipe_name: str = "demo", folder: str = "example") -> None:
    recipe, source = load_recipe(recipe_name), find_data(data)
    run = create_run(recipe, stem=recipe_name, root=Path(folder) / "runs")
    train(recipe, source=source, run=run, on_epoch=print_epoch)
    report = export_onnx(run.best, Path(folder) / "model.onnx", data=source)  # or raises `Rejected`
    print(f"verified: {report.figures.test_correct} of {report.figures.test_images} test images")
    samples = write_samples(source, Path(folder) / "samples")
    for prediction in Classifier(Path(folder) / "model.onnx").predict(samples):
        print(f"{prediction.path}: {prediction.label} ({prediction.probability:.1%})")


if __name__ == "__main__":
    main(*sys.argv[1:])
