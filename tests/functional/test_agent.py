"""The agent's own protocol (E2B's envd), as any client on the daemon's port sees it."""

import base64
import contextlib
import http.client
import json

import pytest

from harness import AGENT_PORT, CALL_SECONDS, basic_user, connect_frame, wait_until


class Agent:
    """A client of one sandbox' agent, through the proxy."""

    def __init__(self, sandbox, user="user"):
        self.daemon = sandbox.daemon
        self.headers = {
            "Host": f"{AGENT_PORT}-{sandbox.id}.localhost",
            "X-Access-Token": sandbox.info()["access_token"],
            "Authorization": basic_user(user),
        }

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=CALL_SECONDS)

    def request(self, method, path, body=None, **headers):
        connection = self.connection()
        try:
            connection.request(method, path, body, {**self.headers, **headers})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def call(self, method, message):
        """A unary call: (status, message)."""
        status, body = self.request("POST", f"/{method}", json.dumps(message), **{"Content-Type": "application/json"})
        return status, json.loads(body)

    def expect(self, method, message):
        status, answer = self.call(method, message)
        assert status == 200, answer
        return answer

    @contextlib.contextmanager
    def stream(self, method, message, **headers):
        """The messages of a server stream, the last being {"end": …}."""
        connection = self.connection()
        sent = {**self.headers, "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1", **headers}
        connection.request("POST", f"/{method}", connect_frame(message), sent)
        response = connection.getresponse()

        def messages():
            while head := response.read(5):
                text = response.read(int.from_bytes(head[1:], "big"))
                yield {"end": json.loads(text)} if head[0] & 2 else json.loads(text)

        try:
            yield messages()
        finally:
            connection.close()

    def start(self, *command, stdin=False, **fields):
        process = {"cmd": command[0], "args": list(command[1:])}
        return self.stream("process.Process/Start", {"process": process, "stdin": stdin, **fields})


@pytest.fixture
def agent(sandbox):
    return Agent(sandbox)


def events(messages):
    return [message["event"] for message in messages if "event" in message]


def output(found, kind="stdout"):
    return b"".join(base64.b64decode(event["data"].get(kind, "")) for event in found if "data" in event)


def test_start_reports_start_data_and_end(agent):
    with agent.start("/bin/sh", "-c", "echo out; echo err >&2; exit 3") as messages:
        everything = list(messages)
    assert everything[-1] == {"end": {}}
    found = events(everything)
    assert found[0]["start"]["pid"] > 1
    assert output(found) == b"out\n" and output(found, "stderr") == b"err\n"
    assert found[-1]["end"]["exitCode"] == 3 and found[-1]["end"]["exited"] is True


def test_connect_follows_a_running_process(agent):
    with agent.start("/bin/sh", "-c", "while read line; do echo got $line; done", stdin=True, tag="mine") as started:
        pid = next(started)["event"]["start"]["pid"]
        selector = {"pid": pid}
        with agent.stream("process.Process/Connect", {"process": selector}) as connected:
            assert next(connected)["event"]["start"]["pid"] == pid
            listed = agent.expect("process.Process/List", {})["processes"]
            assert [(process["pid"], process["tag"]) for process in listed] == [(pid, "mine")]
            data = base64.b64encode(b"one\n").decode()
            agent.expect("process.Process/SendInput", {"process": selector, "input": {"stdin": data}})
            assert output([next(connected)["event"]]) == b"got one\n"
            assert output([next(started)["event"]]) == b"got one\n"
            agent.expect("process.Process/CloseStdin", {"process": {"tag": "mine"}})
            assert events(connected)[-1]["end"]["exited"] is True
        assert events(started)[-1]["end"]["exitCode"] == 0
    status, error = agent.call("process.Process/SendInput", {"process": {"pid": 999999}, "input": {"stdin": ""}})
    assert status == 404 and error["code"] == "not_found"


def test_signals_end_a_process_and_are_told(agent):
    for signal, number in (("SIGNAL_SIGKILL", 9), ("SIGNAL_SIGTERM", 15)):
        with agent.start("/bin/sleep", "1000") as messages:
            pid = next(messages)["event"]["start"]["pid"]
            agent.expect("process.Process/SendSignal", {"process": {"pid": pid}, "signal": signal})
            end = events(messages)[-1]["end"]
        assert end["exitCode"] == -1 and not end.get("exited")
        assert {9: "killed", 15: "terminated"}[number] in end["status"]


def test_a_timeout_ends_the_process_and_a_lost_client_does_not(agent, sandbox):
    with agent.stream("process.Process/Start", {"process": {"cmd": "/bin/sleep", "args": ["1000"]}, "stdin": False},
                      **{"Connect-Timeout-Ms": "500"}) as messages:  # fmt: skip
        last = list(messages)[-1]
    assert last["end"]["error"]["code"] == "deadline_exceeded"
    wait_until(lambda: not agent.expect("process.Process/List", {}).get("processes"), "the process' end")
    with agent.start("/bin/sleep", "1000") as messages:
        pid = next(messages)["event"]["start"]["pid"]
    listed = agent.expect("process.Process/List", {})["processes"]
    assert [process["pid"] for process in listed] == [pid]
    sandbox.exec("kill", "-0", str(pid)).expect(0)


def test_a_terminal_takes_input_and_sizes(agent):
    process = {"cmd": "/bin/sh", "args": ["-c", "stty size; read x; stty size; exit 5"]}
    request = {"process": process, "pty": {"size": {"cols": 71, "rows": 17}}}
    with agent.stream("process.Process/Start", request) as messages:
        pid = next(messages)["event"]["start"]["pid"]
        seen = b""
        for message in messages:
            seen += output([message["event"]], "pty")
            if b"17 71" in seen:
                break
        agent.expect("process.Process/Update", {"process": {"pid": pid}, "pty": {"size": {"cols": 72, "rows": 18}}})
        line = base64.b64encode(b"\n").decode()
        agent.expect("process.Process/SendInput", {"process": {"pid": pid}, "input": {"pty": line}})
        rest = events(messages)
    assert b"18 72" in output(rest, "pty")
    assert rest[-1]["end"]["exitCode"] == 5


def test_a_silent_process_keeps_the_stream_alive(agent):
    with agent.stream("process.Process/Start", {"process": {"cmd": "/bin/sleep", "args": ["3"]}, "stdin": False},
                      **{"Keepalive-Ping-Interval": "1"}) as messages:  # fmt: skip
        kinds = [next(iter(event)) for event in events(messages)]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("keepalive") >= 2


def test_wrong_requests_are_invalid_arguments(agent):
    with agent.start("/no/such/program") as messages:
        error = list(messages)[-1]["end"]["error"]
    assert error["code"] in ("not_found", "invalid_argument") and error["message"]
    with agent.stream("process.Process/Start", {"process": {"cmd": "/bin/true", "cwd": "/no/such"}}) as messages:
        assert list(messages)[-1]["end"]["error"]["code"] == "invalid_argument"
    assert agent.request("POST", "/process.Process/List", "{", **{"Content-Type": "application/json"})[0] == 400
    assert agent.request("POST", "/process.Process/NoSuch", "{}", **{"Content-Type": "application/json"})[0] == 501


def test_files_up_and_down(agent, sandbox):
    content = bytes(range(256)) * 1000
    status, body = agent.request("POST", "/files?path=a/b.bin", content, **{"Content-Type": "application/octet-stream"})
    assert status == 200 and json.loads(body)[0]["path"] == "/home/user/a/b.bin"
    assert agent.request("GET", "/files?path=a/b.bin") == (200, content)
    assert sandbox.sh("stat -c %U /home/user/a /home/user/a/b.bin").split() == ["user", "user"]
    boundary = "boundary"
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="/home/user/c.txt"\r\n\r\ntext\r\n'
    status, body = agent.request("POST", "/files", f"{part}--{boundary}--\r\n".encode(),
                                 **{"Content-Type": f"multipart/form-data; boundary={boundary}"})  # fmt: skip
    assert status == 200, body
    assert sandbox.sh("cat /home/user/c.txt") == "text"
    assert agent.request("GET", "/files?path=none")[0] == 404
    assert agent.request("GET", "/files?path=/etc")[0] == 400
    assert agent.request("GET", "/files?path=/etc/passwd&username=ghost")[0] == 401


def test_no_space_in_the_guest_is_507(agent):
    status, _ = agent.request(
        "POST", "/files?path=large", bytes(80 << 20), **{"Content-Type": "application/octet-stream"}
    )
    assert status == 507


def test_the_file_system_service(agent):
    call = agent.expect
    made = call("filesystem.Filesystem/MakeDir", {"path": "d/e"})["entry"]
    assert made["path"] == "/home/user/d/e" and made["type"] == "FILE_TYPE_DIRECTORY"
    status, error = agent.call("filesystem.Filesystem/MakeDir", {"path": "d/e"})
    assert status == 409 and error["code"] == "already_exists"
    agent.request("POST", "/files?path=d/e/f", b"12345", **{"Content-Type": "application/octet-stream"})
    entry = call("filesystem.Filesystem/Stat", {"path": "d/e/f"})["entry"]
    assert entry["name"] == "f" and int(entry["size"]) == 5 and entry["type"] == "FILE_TYPE_FILE"
    assert entry["owner"] == "user" and entry["permissions"].startswith("-rw")
    listed = call("filesystem.Filesystem/ListDir", {"path": "d", "depth": 1})["entries"]
    assert [entry["name"] for entry in listed] == ["e"]
    deep = call("filesystem.Filesystem/ListDir", {"path": "d", "depth": 2})["entries"]
    assert sorted(entry["path"] for entry in deep) == ["/home/user/d/e", "/home/user/d/e/f"]
    moved = call("filesystem.Filesystem/Move", {"source": "d/e/f", "destination": "d/g"})["entry"]
    assert moved["path"] == "/home/user/d/g"
    assert agent.request("GET", "/files?path=d/g") == (200, b"12345")
    call("filesystem.Filesystem/Remove", {"path": "d"})
    status, error = agent.call("filesystem.Filesystem/Stat", {"path": "d"})
    assert status == 404 and error["code"] == "not_found"


def test_metrics_and_environment(daemon):
    sandbox = daemon.run("--env", "COLOUR=red")
    agent = Agent(sandbox)
    status, body = agent.request("GET", "/metrics")
    metrics = json.loads(body)
    assert status == 200 and metrics["cpu_count"] == 1
    assert 200 << 20 < metrics["mem_total"] < 256 << 20 and 0 < metrics["mem_used"] < metrics["mem_total"]
    assert 0 < metrics["disk_used"] <= metrics["disk_total"] <= 64 << 20
    status, body = agent.request("GET", "/envs")
    assert status == 200 and json.loads(body)["COLOUR"] == "red"
    # From inside as well, as programs in the guest expect.
    token = sandbox.info()["access_token"]
    assert '"red"' in sandbox.sh(f"wget -q -O - --header 'X-Access-Token: {token}' http://localhost:{AGENT_PORT}/envs")


def test_the_token_is_demanded(sandbox):
    agent = Agent(sandbox)
    assert agent.request("GET", "/health")[0] == 204
    for token in ("", "wrong", "0" * 40):
        agent.headers["X-Access-Token"] = token
        assert agent.request("GET", "/metrics")[0] == 401
        assert agent.call("process.Process/List", {})[0] == 401
        assert agent.request("GET", "/files?path=/etc/passwd")[0] == 401
        assert agent.request("GET", "/health")[0] == 204
    # A fork has a token of its own, and the parent's doesn't open it.
    (child,) = sandbox.fork()
    agent = Agent(child)
    agent.headers["X-Access-Token"] = sandbox.info()["access_token"]
    assert agent.request("GET", "/metrics")[0] == 401


def test_a_slow_reader_bounds_the_agents_memory(agent, sandbox):
    """A process that prints without end to a client that doesn't read is stopped by its full pipe."""
    with agent.start("yes") as messages:
        pid = next(messages)["event"]["start"]["pid"]
        wait_until(lambda: "pipe" in sandbox.sh(f"cat /proc/{pid}/wchan"), "yes waiting for its pipe")
        used = sandbox.sh(
            "for p in /proc/[0-9]*; do grep -q dormouse-agent $p/comm && awk '/VmRSS/ {print $2}' $p/status; done; true"
        )
        assert 0 < max(int(kib) for kib in used.split()) < 32 * 1024
