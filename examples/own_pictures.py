"""Train a classifier on your own pictures from Python: start from the shipped model, export, predict.

    python own_pictures.py FOLDER [MIN_ACCURACY] [RECIPE] [OUTPUT]

FOLDER holds train/CLASS/... and test/CLASS/..., or CLASS/...; RECIPE is a preset or a file. OUTPUT is a folder
for the run and the model.
"""

import sys
from pathlib import Path

from toolkit.deploy import export_onnx
from toolkit.inference import Classifier
from toolkit.training import create_run, find_data, load_recipe, train
from toolkit.training.initialize import load_initial


def main(pictures: str, min_accuracy: str = "0.5", recipe: str = "finetune", output: str = "own") -> None:
    source = find_data(pictures, note=print)
    run = create_run(load_recipe(recipe), stem="own", root=Path(output) / "runs", init=load_initial("shipped"))
    train(run.read_recipe(), source=source, run=run, note=print)
    model = Path(output) / "model.onnx"
    figures = export_onnx(run.best, model, data=source, min_accuracy=float(min_accuracy)).figures
    assert figures.test_accuracy_interval is not None
    low, high = figures.test_accuracy_interval
    print(f"{figures.test_correct} of {figures.test_images} test pictures right; 95% interval {low:.1%} to {high:.1%}")
    for prediction in list(Classifier(model).stream(pictures))[:5]:
        print(prediction)


if __name__ == "__main__":
    main(*sys.argv[1:])
