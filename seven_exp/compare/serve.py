"""Serves the page over HTTP on this machine only, updated at each reload."""

import hmac
import html
import io
import secrets
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

HOST = "127.0.0.1"
RECORDS = "records"
"""The folders are served below this path, by their number: /TOKEN/records/0/..."""


class Server(ThreadingHTTPServer):
    """Serves a page and, read-only, the files below some folders.

    All addresses begin with a random token, so that other users and pages can't guess them.

    Args:
        folders: Nothing outside them is served, even through a link inside them.
        render: Makes the page; the message of a ValueError replaces the page.
        port: 0 for any free one.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], render: Callable[[], str], port: int) -> None:
        self.folders = [folder.resolve() for folder in folders]
        self.render = render
        self.token = secrets.token_urlsafe()
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """The page's address for a browser."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def link(self, path: Path) -> str:
        """The unquoted address of a file or folder below one of the folders."""
        path = path.resolve()
        for number, folder in enumerate(self.folders):
            if path.is_relative_to(folder):
                return f"/{self.token}/{RECORDS}/{number}/{path.relative_to(folder).as_posix()}"
        raise ValueError(f"'{path}' is not below any of the folders")


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def send_head(self) -> Any:
        # Another site's name may resolve to this address; it must not read these files.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        if self._route() == "":
            return self._send_page()
        if self._target() is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def translate_path(self, path: str) -> str:
        target = self._target()
        return str(target) if target else ""

    def guess_type(self, path: Any) -> str:
        """Text is displayed, not downloaded."""
        if Path(path).suffix in (".jsonl", ".log", ".yaml", ".csv", ".txt", ""):
            return "text/plain; charset=utf-8"
        return super().guess_type(path)

    def _route(self) -> str | None:
        """The path behind the token; None if that is wrong."""
        path = unquote(urlsplit(self.path).path)
        token, _, rest = path.removeprefix("/").partition("/")
        same = hmac.compare_digest(token.encode(), self.server.token.encode())
        return rest if same else None

    def _target(self) -> Path | None:
        """The requested file or folder, if it is below one of the folders."""
        parts = (self._route() or "").split("/")
        try:
            if parts[0] != RECORDS:
                return None
            folder = self.server.folders[int(parts[1])]
            target = folder.joinpath(*parts[2:]).resolve()
            return target if target.is_relative_to(folder) and target.exists() else None
        except (IndexError, ValueError, OSError):
            return None

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        if self._route() != "":
            # HTML files among the records are displayed, but may not request anything here.
            self.send_header("Content-Security-Policy", "sandbox allow-scripts")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal shows only the address."""

    def _send_page(self) -> Any:
        status, page = HTTPStatus.OK, ""
        try:
            page = self.server.render()
        except ValueError as error:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            page = f"<!doctype html><title>No comparison</title><p>{html.escape(str(error))}</p>"
        body = page.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return io.BytesIO(body)
