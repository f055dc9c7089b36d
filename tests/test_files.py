"""File names escaped for a terminal, JSON and CSV."""

import json
import os

import pytest

from toolkit.files import as_text, escape

BYTES = os.fsdecode(b"caf\xe9.png")  # Latin-1, not UTF-8


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat.png", "cat.png"),
        ("chat d'été 猫.png", "chat d'été 猫.png"),
        ("at 3\u202fPM.png", "at 3\u202fPM.png"),
        ("a\nb\tc.png", r"a\nb\tc.png"),
        ("\x1b[31mred.png", r"\x1b[31mred.png"),
        ("gnp.\u202etac", r"gnp.\u202etac"),
        (BYTES, r"caf\xe9.png"),
    ],
)
def test_display_escapes_control_characters_and_foreign_bytes(name: str, shown: str) -> None:
    assert escape(name) == shown


@pytest.mark.hostile
def test_as_text_is_valid_unicode_and_keeps_control_characters() -> None:
    assert as_text(BYTES) == r"caf\xe9.png"
    assert as_text("a\nb.png") == "a\nb.png"
    json.dumps(as_text(BYTES), ensure_ascii=False).encode("utf-8")
