"""Predict all pictures below a folder into a CSV: python batch_folder.py FOLDER OUT.csv [MODEL]"""

import csv
import sys

from toolkit.inference import Classifier, Prediction, as_text


def main(folder: str, out: str, model: str | None = None) -> None:
    """Write one line for each picture as soon as it is predicted; a bad picture gets a line with its error."""
    classifier = Classifier(model)
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "probability", "error"])
        for result in classifier.stream([folder], batch_size=256):
            if isinstance(result, Prediction):
                writer.writerow([as_text(result.path), result.label, f"{result.probability:.4f}", ""])
            else:
                writer.writerow([as_text(result.path), "", "", result.error])


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
