"""Answers other than 200."""

from __future__ import annotations

from starlette.exceptions import HTTPException


class Refusal(HTTPException):
    """An answer other than 200, with the code that tells clients why and the field that it is about.

    Args:
        status: of HTTP.
        message: one line: what, where, what to do.
        code: for programs.
        field: of the request.
        close: close the connection afterwards, since the rest of the request is not read.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, field: str | None = None, close: bool = False
    ) -> None:
        headers = {"Retry-After": "1"} if status in (429, 503) else {}
        super().__init__(status, message, headers | ({"Connection": "close"} if close else {}))
        self.code = code
        self.field = field
