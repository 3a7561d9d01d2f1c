"""Paused sandboxes that requests wake."""

import http.client
import socket
import threading

import pytest

from guest import Counter, boot_id
from harness import AGENT_PORT, CALL_SECONDS, wait_until

SERVER_PORT = 8000
ECHO_PORT = 8001

SERVERS = f"""
mkdir -p /tmp/www && echo from the guest >/tmp/www/page
httpd -p {SERVER_PORT} -h /tmp/www
cat >/tmp/echo.sh <<'END'
while :; do
    rm -f /tmp/pipe && mkfifo /tmp/pipe
    ( printf 'HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n'; cat /tmp/pipe ) |
        nc -l -p {ECHO_PORT} >/tmp/pipe
done
END
setsid sh /tmp/echo.sh >/dev/null 2>&1 </dev/null &
until netstat -ltn | grep -q :{SERVER_PORT} && netstat -ltn | grep -q :{ECHO_PORT}; do usleep 20000; done
"""


@pytest.fixture
def waking(daemon):
    """A sandbox with servers in it that counts, and is woken by requests."""
    sandbox = daemon.run("--auto-resume")
    sandbox.sh(SERVERS)
    sandbox.counter = Counter(sandbox)
    return sandbox


def get(sandbox, port=SERVER_PORT, path="/page", token=None):
    """(status, body) of a request through the proxy, as a client without any key sends it."""
    connection = http.client.HTTPConnection("127.0.0.1", sandbox.daemon.port, timeout=CALL_SECONDS)
    headers = {"Host": f"{port}-{sandbox.id}.localhost", **({"X-Access-Token": token} if token else {})}
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_request_wakes_it_and_is_served(waking):
    state = waking.counter.read()
    boot = boot_id(waking)
    for _ in range(2):
        waking.pause()
        assert get(waking) == (200, b"from the guest\n")
        assert waking.state() == "running"
        state = waking.counter.wait_beyond(state)
    assert boot_id(waking) == boot


def test_it_is_shown(waking):
    assert waking.info()["auto_resume"] is True
    daemon = waking.daemon
    status, detail = daemon.http("GET", f"/sandboxes/{waking.id}")
    assert status == 200 and detail["lifecycle"] == {"onTimeout": "kill", "autoResume": True}
    body = {"templateID": "tiny", "autoPause": True, "autoResume": {"enabled": True}}
    status, made = daemon.http("POST", "/v2/sandboxes", body)
    assert status == 201
    status, detail = daemon.http("GET", f"/sandboxes/{made['sandboxID']}")
    assert detail["lifecycle"] == {"onTimeout": "pause", "autoResume": True}
    plain = daemon.run()
    assert plain.info()["auto_resume"] is False
    assert [child.info()["auto_resume"] for child in waking.fork()] == [True]


def test_a_websocket_wakes_it_too(waking):
    waking.pause()
    with socket.create_connection(("127.0.0.1", waking.daemon.port), timeout=CALL_SECONDS) as connection:
        connection.sendall(
            f"GET / HTTP/1.1\r\nHost: {ECHO_PORT}-{waking.id}.localhost\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(4096)
        assert received.startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"echo me")
        received = received.partition(b"\r\n\r\n")[2]
        while not received.endswith(b"echo me"):
            block = connection.recv(4096)
            assert block, received
            received += block
    assert waking.state() == "running"


def test_requests_that_come_together_wait_for_one_resume(waking):
    waking.pause()
    answers = []
    start = threading.Barrier(12)

    def ask():
        start.wait()
        answers.append(get(waking))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(200, b"from the guest\n")] * 12
    assert list(waking.daemon.vmm_pids().values()) == [waking.id]
    assert waking.daemon.log().count(f"{waking.id}: woken by a request") == 1


def test_the_agents_port_needs_the_token(waking):
    token = waking.info()["access_token"]
    waking.pause()
    for wrong in (None, "0" * len(token), token[:-1], token + "0"):
        status, body = get(waking, AGENT_PORT, "/health", wrong)
        assert status == 502 and b"The sandbox was not found" in body
        assert waking.state() == "paused"
    status, _ = get(waking, AGENT_PORT, "/init", token)
    assert status == 403 and waking.state() == "paused"
    assert get(waking, AGENT_PORT, "/health", token)[0] == 204
    assert waking.state() == "running"


def test_the_command_line_wakes_it(waking):
    waking.pause()
    assert waking.sh("echo awake") == "awake"


def test_who_did_not_ask_for_it_sleeps_on(daemon):
    sandbox = daemon.run()
    token = sandbox.info()["access_token"]
    sandbox.pause()
    assert get(sandbox)[0] == 502
    assert get(sandbox, AGENT_PORT, "/health", token)[0] == 502
    assert sandbox.state() == "paused"


def test_a_snapshot_without_memory_is_never_booted_by_traffic(waking):
    token = waking.info()["access_token"]
    waking.daemon.cli("pause", "--disk-only", waking.id).expect(0)
    assert get(waking)[0] == 502
    assert get(waking, AGENT_PORT, "/health", token)[0] == 502
    assert waking.state() == "paused"
    waking.daemon.cli("run", "-t", "tiny", "--on-timeout", "pause-disk", "--auto-resume").expect_failure(
        "auto-resume", status=2
    )
    body = {"template": "tiny", "on_timeout": "pause-disk", "auto_resume": True}
    assert waking.daemon.http("POST", "/dormouse/v1/sandboxes", body)[0] == 400
    body = {"templateID": "tiny", "autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}}
    assert waking.daemon.http("POST", "/v2/sandboxes", body)[0] == 400


def test_a_snapshot_that_is_gone_is_not_replaced_by_a_boot(waking):
    waking.pause()
    snapshot = waking.info()["snapshot"]
    manifest = waking.daemon.data / "snapshots" / snapshot / "manifest"
    kept = manifest.rename(manifest.with_name("kept"))
    assert get(waking)[0] >= 500
    assert waking.state() == "paused"
    kept.rename(manifest)
    assert get(waking)[0] == 200


def test_its_time_begins_anew(daemon):
    sandbox = daemon.run("--timeout", "4", "--on-timeout", "pause", "--auto-resume")
    sandbox.sh(SERVERS)
    for _ in range(2):
        wait_until(lambda: sandbox.state() == "paused", "the end of its time")
        assert get(sandbox)[0] == 200
        assert sandbox.info()["expires_at"] is not None


def test_a_request_during_a_pause_waits_and_wakes_it(waking):
    pause = waking.daemon.popen("pause", waking.id)
    wait_until(lambda: waking.state() != "running", "the begin of the pause")
    assert get(waking) == (200, b"from the guest\n")
    assert pause.wait(CALL_SECONDS) == 0, "the pause was not cancelled"
    assert waking.state() == "running"


def test_it_survives_a_restart_of_the_daemon(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run("--auto-resume")
    sandbox.sh(SERVERS)
    sandbox.pause()
    daemon.kill()
    daemon.start()
    assert get(sandbox) == (200, b"from the guest\n")
