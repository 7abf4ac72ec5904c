"""The server's door: our own page comes in, everything else gets a refusal and learns nothing."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE_S

from smartpool.errors import InvalidRequestError
from smartpool.live import LiveServer

JSON = {"Content-Type": "application/json"}


def echo(question):
    return {"asked": dict(question)}


def broken(question):
    raise ZeroDivisionError("planted")


@pytest.fixture(scope="module")
def server():
    with LiveServer({"/echo": echo, "/broken": broken}) as running:
        yield running


def ask(server, method="POST", path="/echo", body=b"{}", **headers):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE_S)
    try:
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_the_page_and_its_parts_are_served_and_closed_to_everything_else(server):
    for path in ("/", "/live.css", "/live.js"):
        status, body, headers = ask(server, "GET", path, None)
        assert status == 200
        assert body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("path", ["/../server.py", "/server.py", "/?x=1", "/live.js?", "/%2e%2e/view.py", ""])
def test_there_is_nothing_else(server, path):
    connection = socket.create_connection((server.host, server.port), timeout=PATIENCE_S)
    with connection:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = connection.makefile("rb").read()
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert b"ThreadingHTTPServer" not in answer


def test_a_question_is_answered(server):
    status, body, _ = ask(server, body=json.dumps({"n": 1}).encode(), **JSON)
    assert (status, json.loads(body)) == (200, {"asked": {"n": 1}})


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_strangers_are_refused(server, method, headers):
    status, body, _ = ask(server, method, "/" if method == "GET" else "/echo", b"{}", **(JSON | headers))
    assert status in (403, 421)
    assert b"expected" in body


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"{}", 415),
        ({"Content_Type": "text/plain"}, b"{}", 415),
        (JSON, b"x" * 5000, 413),
        (JSON, b"{", 400),
        (JSON, b"[" * 4000, 400),
        (JSON | {"Content_Length": "-1"}, b"", 413),
        (JSON | {"Content_Length": "²"}, b"", 413),
    ],
)
def test_bodies_that_are_no_questions_are_refused(server, headers, body, status):
    headers = {
        name.encode().decode("latin-1"): value.encode().decode("latin-1") for name, value in headers.items()
    }
    assert ask(server, "POST", "/echo", body, **headers)[0] == status


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_comes_the_server_goes_on(server, raw):
    with socket.create_connection((server.host, server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(raw + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    assert ask(server, **JSON)[0] == 200


def test_our_own_mistakes_are_told_and_logged_once(server, caplog):
    with caplog.at_level(logging.ERROR, "smartpool.live"):
        answers = [ask(server, path="/broken", **JSON)[:2] for _ in range(3)]
    assert {status for status, _ in answers} == {500}
    assert b"ZeroDivisionError" in answers[0][1]
    assert len(caplog.records) == 1


def test_a_password_is_asked_for():
    with LiveServer({"/echo": echo}, password="öffne dich") as server:
        assert ask(server, **JSON)[0] == 401
        for word, status in (("wrong", 401), ("", 401), ("öffne dich", 200)):
            given = base64.b64encode(f"anyone:{word}".encode()).decode()
            assert ask(server, Authorization=f"Basic {given}", **JSON)[0] == status
        assert ask(server, Authorization="Basic ***", **JSON)[0] == 401
        assert ask(server, "GET", "/", None)[0] == 401


def test_other_names_and_ipv6():
    with LiveServer({"/echo": echo}, names=("gpu-node",)) as server:
        assert ask(server, Host=f"gpu-node:{server.port}", **JSON)[0] == 200
        assert ask(server, Host=f"localhost:{server.port}", **JSON)[0] == 200
    try:
        server = LiveServer({"/echo": echo}, host="::1")
    except InvalidRequestError:
        pytest.skip("no IPv6 here")
    with server:
        assert ask(server, Host=f"[::1]:{server.port}", **JSON)[0] == 200


@pytest.mark.parametrize("names", ["Gpu-Node", ["gpu-node"], {"gpu-node": 1}, iter(["gpu-node", "other"])])
def test_a_name_or_several(names):
    with LiveServer({"/echo": echo}, names=names) as server:
        assert ask(server, Host=f"gpu-node:{server.port}", **JSON)[0] == 200
        assert ask(server, Host=f"g:{server.port}", **JSON)[0] == 421  # text is one name, not its letters


def test_browsers_leave_the_usual_port_out(monkeypatch):
    with LiveServer({"/echo": echo}) as server:
        assert ask(server, Host="127.0.0.1", **JSON)[0] == 421
    monkeypatch.setattr("smartpool.live.server._USUAL_PORT", server.port)
    with LiveServer({"/echo": echo}) as other:
        assert ask(other, Host="127.0.0.1", **JSON)[0] == 421
    with LiveServer({"/echo": echo}, port=server.port) as usual:
        for host in ("127.0.0.1", "localhost", f"127.0.0.1:{usual.port}"):
            assert ask(usual, Host=host, Origin=f"http://{host}", **JSON)[0] == 200
            assert ask(usual, Host=host, Origin="http://evil.example", **JSON)[0] == 403


class Slow:
    """Connections that hold their places as long as they are let: by sending, or by reading, little."""

    def __init__(self, server, count, beginning):
        self.connections = []
        for _ in range(count):
            connection = socket.create_connection((server.host, server.port), timeout=PATIENCE_S)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(beginning)
            self.connections.append(connection)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for connection in self.connections:
            connection.close()


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HTTP/1.1\r\nX: ",
        b"POST /echo HTTP/1.1\r\nHost:127.0.0.1:%d\r\nContent-Length:9\r\nContent-Type:%s\r\n\r\n",
        b"GET /live.js HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" * 200,
    ],
    ids=["silent", "in the headers", "in the body", "that do not read"],
)
def test_slow_connections_keep_nobody_out(beginning):
    with LiveServer({"/echo": echo}) as server:
        with Slow(
            server, 40, beginning.replace(b"%d", b"%d" % server.port).replace(b"%s", b"application/json")
        ):
            for _ in range(3):
                assert ask(server, **JSON)[0] == 200
            assert len(server._server.connections) <= 32
        assert ask(server, **JSON)[0] == 200


def test_one_connection_asks_again_and_again():
    with LiveServer({"/echo": echo}) as server:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE_S)
        for number in range(50):
            connection.request("POST", "/echo", json.dumps({"n": number}), JSON)
            assert json.loads(connection.getresponse().read()) == {"asked": {"n": number}}
            assert len(server._server.connections) == 1
        connection.close()


def test_a_closed_server_frees_its_port_and_its_thread():
    server = LiveServer({"/echo": echo})
    port = server.port
    server.close()
    server.close()
    server.join()
    assert "closed" in repr(server)
    assert not [
        thread for thread in threading.enumerate() if thread.name == "smartpool-live" and thread is server
    ]
    with LiveServer({"/echo": echo}, port=np.int64(port)) as again:
        assert again.port == port


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"port": 1 << 16}, "port"),
        ({"port": "80"}, "port"),
        ({"host": ""}, "host"),
        ({"host": 5}, "host"),
        ({"password": ""}, "password"),
        ({"host": "203.0.113.1"}, "choose a host of this machine"),
        ({"host": "a\0b"}, "expected an address"),
        ({"host": "\udce9"}, "expected an address"),
        ({"password": "\udce9"}, "password"),
        ({"names": 5}, "names"),
        ({"names": None}, "names"),
        ({"names": [""]}, "names"),
        ({"names": ["node", 5]}, "names"),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(InvalidRequestError, match=said):
        LiveServer({}, **arguments)


def test_a_port_in_use_is_one_clear_error(server):
    with pytest.raises(InvalidRequestError, match="another port"):
        LiveServer({}, port=server.port)
