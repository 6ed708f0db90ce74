"""The report of a run that goes on, on the loopback address; it shows itself anew as rows come."""

from __future__ import annotations

import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Lock

from comal_fast.errors import InputError
from comal_fast.report.html import draw, render
from comal_fast.report.load import load_run
from comal_fast.store.directory import RunDirectory

HOST = "127.0.0.1"
SECONDS = 5.0  # at least, between two renderings

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LIVE = f"{_POLICY}; script-src 'self'; connect-src 'self'"


class LiveReport:
    """The page of a run and when it was rendered; rendered when asked for, if the run moved on."""

    def __init__(self, path: Path) -> None:
        self._directory = RunDirectory(path)
        self._lock = Lock()
        self._seen: tuple[int, ...] = ()
        self._page, self._stamp = "", 0.0

    def page(self) -> tuple[str, str]:
        """(the page, its stamp: seconds since 1970)."""
        with self._lock:
            seen = self._moments()
            if seen != self._seen and time.time() - self._stamp >= SECONDS:
                run = load_run(self._directory.path)
                self._page = _alive(render(run, draw(run)))
                self._seen, self._stamp = seen, time.time()
            stamp = f"{self._stamp:.3f}"
            return self._page.replace("data-stamp=''", f'data-stamp="{stamp}"'), stamp

    def _moments(self) -> tuple[int, ...]:
        """When what the page shows was written."""
        directory = self._directory
        folders = directory.iterations().values()
        shown = [directory.metrics, directory.summary.path, directory.config]
        shown += [a.path for f in folders for a in (f.evaluation, f.diagnostics)]
        return tuple(p.stat().st_mtime_ns if p.exists() else 0 for p in shown)


def _alive(page: str) -> str:
    """The page with what shows it anew, which it may load from this server and nowhere else."""
    page = page.replace(_POLICY, _LIVE, 1)
    page = page.replace('<html lang="en">', "<html lang=\"en\" data-stamp=''>", 1)
    page = page.replace("</head>", '<script src="live.js" defer></script>\n</head>', 1)
    line = '<p class="note" id="live" role="status">Live.</p>\n<dl class="facts">'
    return page.replace('<dl class="facts">', line, 1)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, report: LiveReport, *args: object) -> None:
        self._report = report
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        # a name that leads here from elsewhere is no browser of this machine's user
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
            self.send_error(403)
            return
        if self.path in ("/", "/stamp"):
            try:
                page, stamp = self._report.page()
            except Exception as error:  # a file that is being made anew as it is read
                self.send_error(503, explain=str(error))
                return
            if self.path == "/":
                self._answer(page, "text/html")
            else:
                self._answer(stamp, "text/plain")
        elif self.path == "/live.js":
            script = files("comal_fast.report").joinpath("live.js").read_text(encoding="utf-8")
            self._answer(script, "text/javascript")
        else:
            self.send_error(404)

    def _answer(self, text: str, kind: str) -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def serve(path: Path, port: int) -> ThreadingHTTPServer:
    """A server of the live report at 127.0.0.1:port, 0 for any; it answers in `serve_forever`.

    Raises InputError where the port is taken, or `path` is no run directory.
    """
    load_run(path)
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, LiveReport(path)))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--port {port}: {HOST}:{port} can't be served ({why})") from None
