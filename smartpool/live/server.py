"""A small web server for one page: local, read-only, and deaf to anything that is not that page.

It is the standard library's threading server with a door in front. What the door asks of a request:

- a ``Host`` that is this server's own. A foreign page that points a name of its own at 127.0.0.1
  (DNS rebinding) sends its own name and is refused;
- no foreign ``Origin`` and no cross-site ``Sec-Fetch-Site``;
- for data, a POST with ``application/json``, which a foreign page cannot send without asking first
  (a CORS preflight), and nobody answers that;
- no query: what is asked for stands in the body, so nothing about a program's memory ends up in a
  URL, a history or a log;
- the password, where one was set. Without one, every local user can look: that is what loopback means.

A bounded number of connections is served at once. When one more comes, the one that has been at its request
for the longest is dismissed: whoever sends or reads a byte now and then keeps nobody out.

Nothing is computed unless a page asks: a server that nobody looks at is one thread asleep in `accept`.
"""

from __future__ import annotations

import base64
import errno
import hmac
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from smartpool.drawing.assets import joined
from smartpool.errors import InvalidRequestError, SmartPoolError
from smartpool.files import explain
from smartpool.values import as_integer, encodable, shown

__all__ = ["Answer", "LiveServer"]

Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Takes the JSON object that a page sent and returns the one to send back."""

_ASSETS: Final = {  # each of these files one behind the other
    "/": ("live.html", "text/html; charset=utf-8"),
    "/live.css": ("tokens.css base.css live.css", "text/css; charset=utf-8"),
    "/live.js": ("format.js kit.js drawing.js live.js", "text/javascript; charset=utf-8"),
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LONGEST_BODY: Final = 4096
_MOST_CONNECTIONS: Final = 32
_SILENCE_S: Final = 30.0  # a connection that says nothing for so long is closed
_USUAL_PORT: Final = 80  # which browsers leave out of ``Host``
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")

_log = logging.getLogger("smartpool.live")


class LiveServer:
    """Serves the live page on a thread of its own until it is closed.

    Parameters
    ----------
    answers
        For each path that takes data, what answers it. Called on the connection's thread.
    host
        The address to bind. Anything but loopback shows the program's memory to the network.
    port
        The port; 0 for one that is free.
    password
        Asked for by the browser when it is not None; the user's name does not matter.
    names
        Further names under which a browser may reach this server, such as the machine's; one, or several.
    on_close
        Called when the server is closed.

    Raises
    ------
    InvalidRequestError
        When the address cannot be bound, or an argument is none.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        password: str | None = None,
        names: str | Iterable[str] = (),
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        _check_arguments(host, port, password)
        named = _checked_names(names)
        try:
            self._server = _Server((host, port), answers, password)
        except (OSError, OverflowError, ValueError, TypeError) as error:
            raise InvalidRequestError(
                f"expected an address to listen on, got {host!r} port {port}: {explain(error)}; "
                f"{_way_out(error)}"
            ) from None
        self.host, self.port = host, int(self._server.server_address[1])
        shown = f"[{host}]" if ":" in host else host
        known = {*named, shown, *(_LOOPBACK if host in ("127.0.0.1", "::1", "localhost") else ())}
        ends = (f":{self.port}", "") if self.port == _USUAL_PORT else (f":{self.port}",)
        self._server.hosts = frozenset(name.lower() + end for name in known for end in ends)
        self._on_close = on_close
        self.url = f"http://{shown}:{self.port}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="smartpool-live", args=(0.05,), daemon=True
        )
        self._thread.start()
        _log.info("the live page is at %s", self.url)

    def __repr__(self) -> str:
        return f"<LiveServer at {self.url}{'' if self._thread.is_alive() else ': closed'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and free the port. Idempotent."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._on_close()

    def join(self) -> None:
        """Wait until the server is closed."""
        while self._thread.is_alive():
            self._thread.join(0.2)  # in short waits, so that Ctrl-C is heard


class _Server(ThreadingHTTPServer):
    """The standard server with a bound on connections, and what its handlers need to know."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], answers: Mapping[str, Answer], password: str | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.answers = dict(answers)
        self.password = password
        self.hosts: frozenset[str] = frozenset()
        self.failures: set[str] = set()
        self.connections: dict[
            Any, None
        ] = {}  # by when they began to wait for a request, the first one first
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        for longest in list(self.connections)[: 1 - _MOST_CONNECTIONS]:
            self.connections.pop(longest, None)
            with suppress(OSError):  # it has gone by itself
                longest.shutdown(socket.SHUT_RDWR)  # its thread closes it
        self.connections[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its base's
        _log.debug("a connection from %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "smartpool"
    sys_version = ""
    timeout = _SILENCE_S

    def handle_one_request(self) -> None:
        connections = self.server.connections
        if self.connection not in connections:  # dismissed
            self.close_connection = True
            return
        connections[self.connection] = connections.pop(self.connection, None)  # to the end of the line
        super().handle_one_request()

    def do_GET(self) -> None:
        if not self._may_enter():
            return
        asset = _ASSETS.get(self.path)
        if asset is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"expected one of {', '.join(_ASSETS)}")
            return
        names, kind = asset
        self._send(HTTPStatus.OK, joined(names.split(), __package__).encode(), kind)

    def do_POST(self) -> None:
        if not self._may_enter():
            return
        answer = self.server.answers.get(self.path)
        if answer is None:
            self._refuse(HTTPStatus.NOT_FOUND, "expected one of " + ", ".join(self.server.answers))
            return
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _LONGEST_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {_LONGEST_BODY} bytes")
            return
        self._answer(answer, self.rfile.read(int(length)))

    def _answer(self, answer: Answer, body: bytes) -> None:
        try:
            asked = json.loads(body)
            told = answer(asked if isinstance(asked, dict) else {})
            text = json.dumps(told, separators=(",", ":"), allow_nan=False)
        except (ValueError, RecursionError, SmartPoolError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # noqa: BLE001 - ours: told, and never the end of the program we look at
            reason = f"{type(error).__name__}: {error}"
            if reason not in self.server.failures:  # a page asks four times a second: once is enough
                self.server.failures.add(reason)
                _log.exception("%s could not be answered", self.path)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, reason)
        else:
            self._send(HTTPStatus.OK, text.encode(), "application/json")

    def _may_enter(self) -> bool:
        """Return whether the request is our own page's; answer it if it is not."""
        host = self.headers.get("Host", "").lower()
        own_origin = self.headers.get("Origin", f"http://{host}").lower() == f"http://{host}"
        if host not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "expected this server's own name in Host")
        elif not own_origin or self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            self._refuse(HTTPStatus.FORBIDDEN, "expected a request from this server's own page")
        elif not self._knows_password():
            self._refuse(HTTPStatus.UNAUTHORIZED, "expected the password that serve() was given")
        else:
            return True
        return False

    def _knows_password(self) -> bool:
        if self.server.password is None:
            return True
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        try:
            word = base64.b64decode(given, validate=True).partition(b":")[2]
        except ValueError:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(word, self.server.password.encode())

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # whatever else it sent is not read
        self._send(status, f"{encodable(reason)}\n".encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="smartpool", charset="UTF-8"')
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        _log.debug("%s %s", self.address_string(), format % args)


def _way_out(error: Exception) -> str:
    if isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
        return "choose a host of this machine: 127.0.0.1 for itself alone, 0.0.0.0 for its whole network"
    return "choose another port, or 0 for one that is free"


def _check_arguments(host: object, port: object, password: object) -> None:
    if not isinstance(host, str) or not host:
        raise InvalidRequestError(f"host: expected an address such as '127.0.0.1', got {host!r}")
    number = as_integer(port)
    if number is None or not 0 <= number < 1 << 16:
        raise InvalidRequestError(f"port: expected a number from 0 to 65535, got {shown(port)}")
    if password is not None and (not isinstance(password, str) or not password):
        raise InvalidRequestError("password: expected a string that is not empty, or None")
    if password and encodable(password) != password:
        raise InvalidRequestError("password: expected text that UTF-8 can encode")


def _checked_names(names: object) -> tuple[str, ...]:
    given = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else (names,)
    if not all(isinstance(name, str) and name for name in given):
        raise InvalidRequestError(f"names: expected a name such as 'gpu-node', or several, got {names!r}")
    return given
