"""File names, which may hold any bytes, as text that is safe to show and to store."""

import os
import unicodedata


def display(name: str | os.PathLike[str]) -> str:
    r"""`name` on one line and without anything that a terminal obeys.

    Control characters, line ends and characters that reorder text become `\n`, `\x1b` or `\u202e`; a byte that is not
    UTF-8 becomes `\xff`. Ordinary letters of every script, and spaces, stay as they are.
    """
    text = os.fspath(name)
    return text if text.isprintable() else "".join(map(_shown, text))


def as_text(name: str | os.PathLike[str]) -> str:
    r"""`name` as valid Unicode for JSON and CSV: a byte that is not UTF-8 becomes `\xff`, all else is kept."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is no UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
