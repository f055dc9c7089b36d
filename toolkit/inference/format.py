"""Predictions as text: a table, JSON, JSON Lines or CSV, each line as soon as its prediction is there."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from toolkit.files import as_text, display
from toolkit.inference.pipeline import Prediction


def formatted(predictions: Iterable[Prediction], format: str, *, top: int) -> Iterator[str]:
    """The lines of the output, without line ends.

    Args:
        predictions: in any number; they are taken one at a time.
        format: one of `FORMATS`.
        top: how many classes each prediction lists.
    """
    return _csv(predictions, top) if format == "csv" else _FORMATS[format](predictions)


def _table(predictions: Iterable[Prediction]) -> Iterator[str]:
    """The classes first, in columns: paths have any length."""
    for prediction in predictions:
        ranked = "  ".join(f"{label:<10} {probability:>7.2%}" for label, probability in prediction.top)
        yield f"{ranked}  {display(prediction.path)}"


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    return {
        "path": as_text(prediction.path),
        "label": prediction.label,
        "index": prediction.index,
        "probability": prediction.probability,
        "top": [{"label": label, "probability": probability} for label, probability in prediction.top],
    }


def _json_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    for prediction in predictions:
        yield json.dumps(_as_dict(prediction))


def _json(predictions: Iterable[Prediction]) -> Iterator[str]:
    """One array, which is valid however few predictions there are."""
    before = "["
    for line in _json_lines(predictions):
        yield before + line
        before = ","
    yield "]" if before == "," else "[]"


def _csv(predictions: Iterable[Prediction], top: int) -> Iterator[str]:
    """A header, then path, label, probability, and the next classes with theirs where `top` is above 1."""
    others = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("label", "probability")]
    yield _csv_row(["path", "label", "probability", *others])
    for prediction in predictions:
        yield _csv_row([as_text(prediction.path), *(value for pair in prediction.top for value in pair)])


def _csv_row(values: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


_FORMATS: dict[str, Callable[[Iterable[Prediction]], Iterator[str]]] = {
    "table": _table,
    "json": _json,
    "jsonl": _json_lines,
}
FORMATS = (*_FORMATS, "csv")
