"""Format predictions as a table, JSON, JSON Lines or CSV; each line is available as soon as its prediction is."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from toolkit.files import as_text, escape
from toolkit.inference.pipeline import Prediction


def format_predictions(predictions: Iterable[Prediction], output_format: str, *, top: int) -> Iterator[str]:
    """Yield the lines of the output, without line ends.

    Args:
        predictions: consumed one at a time.
        output_format: one of `FORMATS`.
        top: how many classes each prediction lists.
    """
    return _csv_lines(predictions, top) if output_format == "csv" else _FORMATS[output_format](predictions)


def _table_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Classes first, in aligned columns: paths vary in length."""
    for prediction in predictions:
        ranked = "  ".join(f"{label:<10} {probability:>7.2%}" for label, probability in prediction.top)
        yield f"{ranked}  {escape(prediction.path)}"


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


def _json_array_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """One array, valid even without predictions."""
    before = "["
    for line in _json_lines(predictions):
        yield before + line
        before = ","
    yield "]" if before == "," else "[]"


def _csv_lines(predictions: Iterable[Prediction], top: int) -> Iterator[str]:
    """A header, then path, label and probability, followed by the next classes where `top` is above 1."""
    others = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("label", "probability")]
    yield _csv_row(["path", "label", "probability", *others])
    for prediction in predictions:
        yield _csv_row([escape(prediction.path), *(value for pair in prediction.top for value in pair)])


def _csv_row(values: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


_FORMATS: dict[str, Callable[[Iterable[Prediction]], Iterator[str]]] = {
    "table": _table_lines,
    "json": _json_array_lines,
    "jsonl": _json_lines,
}
FORMATS = (*_FORMATS, "csv")
