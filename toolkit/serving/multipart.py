"""Split a body of multipart/form-data into pictures."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from toolkit.serving.model import Picture

_MAX_NAME = 255


def split_pictures(content: bytes, content_type: str, *, max_pictures: int) -> list[Picture]:
    """Return each part of the form as a picture; field names are ignored, file names are used in messages only.

    Raises:
        HTTPException: 400 for a form that is malformed or without parts, 413 for one with too many.
    """
    form = _Form(max_pictures)
    _, options = parse_options_header(content_type)
    try:
        parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": form.begin_part,
                "on_header_field": form.add_to_header_name,
                "on_header_value": form.add_to_header_value,
                "on_header_end": form.end_header,
                "on_part_data": form.add_to_part,
                "on_part_end": form.end_part,
                "on_end": form.end,
            },
        )
        parser.write(content)
        parser.finalize()
    except KeyError:
        raise HTTPException(400, "the Content-Type multipart/form-data lacks a boundary") from None
    except FormParserError as error:
        raise HTTPException(400, "the body is not multipart/form-data with the boundary in its Content-Type") from error
    if not form.complete:
        raise HTTPException(400, "the multipart/form-data ends before its last boundary")
    if not form.pictures:
        raise HTTPException(400, "the form is empty; expected at least one picture")
    return form.pictures


class _Form:
    """Collect the parts of a form from the events of the parser."""

    def __init__(self, max_pictures: int) -> None:
        self.pictures: list[Picture] = []
        self.complete = False
        self._max_pictures = max_pictures

    def begin_part(self) -> None:
        if len(self.pictures) == self._max_pictures:
            raise HTTPException(413, f"a request may hold at most {self._max_pictures} pictures")
        self._name = ""
        self._content = bytearray()
        self._header_name, self._header_value = b"", b""

    def add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            name = options.get(b"filename") or options.get(b"name", b"")
            self._name = name.decode("utf-8", "replace")[:_MAX_NAME]
        self._header_name, self._header_value = b"", b""

    def add_to_part(self, data: bytes, start: int, end: int) -> None:
        self._content += memoryview(data)[start:end]

    def end_part(self) -> None:
        self.pictures.append(Picture(self._name, bytes(self._content)))

    def end(self) -> None:
        self.complete = True
