"""`GET /`: a plain form that posts pictures to /predict. The web page takes its place."""

import html
from collections.abc import Sequence


def render_form(class_names: Sequence[str], *, sha256: str, top: int = 5) -> str:
    """An HTML document that needs no script; the answer is the JSON of /predict."""
    names = html.escape(", ".join(class_names))
    top = min(top, len(class_names))
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cifar serve</title>
<h1>Classify pictures</h1>
<form action="/predict?top={top}" method="post" enctype="multipart/form-data">
<p><label>Pictures: <input type="file" name="picture" accept="image/*" multiple required></label></p>
<p><button>Classify</button></p>
</form>
<p>The answer is JSON: the {top} most probable of {names}.</p>
<p>Model: SHA-256 <code>{sha256}</code></p>
</html>
"""
