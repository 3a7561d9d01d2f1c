"""The daemon's port against clients that don't know HTTP, or know it too well."""

import contextlib
import json
import os
import random
import socket
import time

import pytest

from harness import wait_until

MIB = 1 << 20
PATIENCE = 30


@pytest.fixture(params=["tcp", "unix"])
def connect(daemon, request):
    """Opens connections to the daemon, by either of its sockets."""
    with contextlib.ExitStack() as stack:

        def make():
            if request.param == "tcp":
                made = socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE)
            else:
                made = socket.socket(socket.AF_UNIX)
                made.connect(str(daemon.socket))  # with a timeout it would not wait for the queue to be taken from
                made.settimeout(PATIENCE)
            return stack.enter_context(made)

        yield make
    assert daemon.json("ls") is not None


def answer(connection):
    """Everything until the daemon closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while block := connection.recv(65536):
            received += block
    return received


def rss(daemon):
    with open(f"/proc/{daemon.process.pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


GARBAGE = {
    "zeros": b"\0" * 4096,
    "no request": b"garbage\r\n\r\n",
    "half a request line": b"GET\r\n\r\n",
    "a version of the future": b"GET / HTTP/9.9\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "a header without a colon": b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    "a negative length": b"POST /v2/sandboxes HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    "a broken chunk": b"POST /v2/sandboxes HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZZZ\r\n",
    "escaped bytes": b"GET /%00%ff%fe HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long path": b"GET " + b"/a" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_answered_or_cut_off(connect, garbage):
    connection = connect()
    connection.sendall(garbage)
    connection.shutdown(socket.SHUT_WR)
    received = answer(connection)
    assert not received or received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), received[:100]


def test_garbage_of_every_length_from_a_seeded_generator(connect):
    randomness = random.Random(2)
    request = b'POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{"templateID":"a"}  '
    for _ in range(200):
        damaged = bytearray(request)
        for _ in range(randomness.randrange(1, 8)):
            damaged[randomness.randrange(len(damaged))] = randomness.randrange(256)
        connection = connect()
        connection.sendall(damaged[: randomness.randrange(len(damaged) + 1)])
        connection.shutdown(socket.SHUT_WR)
        answer(connection)
        connection.close()


def test_a_truncated_request_does_nothing(connect, daemon):
    connection = connect()
    body = json.dumps({"template": "tiny"}).encode()
    head = f"POST /dormouse/v1/sandboxes HTTP/1.1\r\nHost: a\r\nX-API-Key: {daemon.api_key()}\r\nContent-Length: "
    connection.sendall(head.encode() + str(len(body) + 10).encode() + b"\r\n\r\n" + body)
    connection.shutdown(socket.SHUT_WR)
    answer(connection)
    assert daemon.list() == {}


def send_endless(connection, block, limit):
    """Sends until the daemon has had enough; returns how much it took."""
    sent = 0
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sent < limit:
            sent += connection.send(block)
    return sent


def test_a_10_gb_header_is_cut_off_early(connect, daemon):
    before = rss(daemon)
    connection = connect()
    began = time.monotonic()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: ")
    sent = send_endless(connection, b"a" * 65536, 10 << 30)
    assert sent < 64 * MIB, f"{sent} bytes of one header were taken"
    assert time.monotonic() - began < PATIENCE
    received = answer(connection)  # a reset may overtake it
    assert not received or received.startswith(b"HTTP/1.1 431 "), received[:100]
    assert rss(daemon) - before < 64 * MIB


def test_endless_small_headers_are_cut_off_too(connect, daemon):
    before = rss(daemon)
    connection = connect()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
    assert send_endless(connection, b"X-A: b\r\n" * 4096, 10 << 30) < 64 * MIB
    assert rss(daemon) - before < 64 * MIB


def test_a_huge_body_is_refused(connect, daemon):
    before = rss(daemon)
    connection = connect()
    head = f"POST /dormouse/v1/sandboxes HTTP/1.1\r\nHost: a\r\nX-API-Key: {daemon.api_key()}\r\n"
    connection.sendall(head.encode() + b"Content-Length: 10000000000\r\n\r\n")
    sent = send_endless(connection, b" " * 65536, 10 << 30)
    assert sent < 64 * MIB
    assert rss(daemon) - before < 64 * MIB
    assert daemon.list() == {}


def test_deeply_nested_json_is_refused(daemon, connect):
    body = b'{"template":' + b"[" * 100000 + b"]" * 100000 + b"}"
    connection = connect()
    head = f"POST /dormouse/v1/sandboxes HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-API-Key: {daemon.api_key()}\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert answer(connection).startswith(b"HTTP/1.1 4")


def test_idle_connections_keep_nobody_out(connect, daemon):
    idle = [connect() for _ in range(300)]
    for connection in idle[::2]:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
    began = time.monotonic()
    sandbox = daemon.run()
    assert sandbox.sh("echo on") == "on"
    assert time.monotonic() - began < PATIENCE
    descriptors = daemon.descriptors()
    for connection in idle:
        connection.close()
    # VMMs that wait for sandboxes to come have some, too.
    wait_until(lambda: daemon.descriptors() <= descriptors - 250, "the end of the idle connections")


def test_internal_paths_of_the_agent_are_not_for_clients(daemon):
    sandbox = daemon.run()
    token = sandbox.info()["access_token"]
    headers = {"Host": f"49983-{sandbox.id}.localhost", "X-Access-Token": token}
    assert daemon.http("GET", "/health", headers=headers)[0] == 204
    for path in ("/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/init/", "//init", "/%69nit"):
        status, _ = daemon.http("POST", path, {}, headers=headers)
        assert status in (403, 404, 405), (path, status)


def test_unknown_hosts_and_sandboxes(daemon):
    status, body = daemon.http("GET", "/health", headers={"Host": "49983-zzzzzzzz.localhost"})
    assert status == 502 and body["code"] == 502 and body["sandboxId"] == "zzzzzzzz"
    sandbox = daemon.run()
    headers = {"Host": f"49983-{sandbox.id}.localhost"}
    assert daemon.http("GET", "/health", headers=headers)[0] == 204
    status, body = daemon.http("GET", "/", headers={"Host": f"4444-{sandbox.id}.localhost"})
    assert status == 502 and "not open" in body["message"]
    sandbox.pause()
    assert daemon.http("GET", "/health", headers=headers)[0] == 502
    status, body = daemon.http("GET", "/no/such/path")
    assert status == 404 and body["code"] == 404
