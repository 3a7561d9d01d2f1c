"""The agent's HTTP service, on the host: `dormouse-agent serve`. No guest is needed, and no daemon."""

import base64
import gzip
import hashlib
import http.client
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from harness import executable, wait_until

LIMIT_SECONDS = 30


class Stream:
    """The events of one server-streaming call."""

    def __init__(self, agent, procedure, message, headers):
        text = json.dumps(message).encode()
        body = b"\0" + struct.pack(">I", len(text)) + text
        self.connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=LIMIT_SECONDS)
        sent = {"Content-Type": "application/connect+json", **agent.headers, **(headers or {})}
        self.connection.request("POST", f"/{procedure}", body, sent)
        self.response = self.connection.getresponse()
        self.status = self.response.status
        self.error = None

    def __iter__(self):
        while True:
            header = self.response.read(5)
            assert len(header) == 5, "the stream has no end frame"
            message = json.loads(self.response.read(struct.unpack(">I", header[1:])[0]))
            if header[0] == 2:
                self.error = message.get("error")
                assert self.response.read(1) == b"", "something follows the end frame"
                return
            assert header[0] == 0
            yield message["event"]

    def next(self):
        return next(iter(self))

    def pid(self):
        return self.next()["start"]["pid"]

    def run(self):
        """Until the end: (output by channel, the end event or None)."""
        pieces = {"stdout": [], "stderr": [], "pty": []}
        end = None
        for event in self:
            assert end is None, "an event follows the end"
            for channel, data in event.get("data", {}).items():
                pieces[channel].append(base64.b64decode(data, validate=True))
            end = event.get("end", end)
        self.close()
        return {channel: b"".join(parts) for channel, parts in pieces.items()}, end

    def close(self):
        self.response.close()
        self.connection.close()


class Agent:
    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.headers = {}
        arguments = [str(executable("dormouse-agent")), "serve", "--port", str(self.port)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
        wait_until(self.answers, "the agent's service")

    def answers(self):
        assert self.process.poll() is None, "the agent ended"
        try:
            return self.call("GET", "/health")[0] == 204
        except ConnectionRefusedError:
            return False

    def call(self, method, target, body=None, headers=None, **options):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_SECONDS)
        try:
            connection.request(method, target, body, {**self.headers, **(headers or {})}, **options)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def unary(self, procedure, message, headers=None):
        sent = {"Content-Type": "application/json", **(headers or {})}
        status, body = self.call("POST", f"/{procedure}", json.dumps(message), sent)
        return status, json.loads(body)

    def process_call(self, procedure, pid, **rest):
        return self.unary(f"process.Process/{procedure}", {"process": {"pid": pid}, **rest})

    def start(self, *arguments, headers=None, process=None, **rest):
        config = {"cmd": arguments[0], "args": list(arguments[1:]), **(process or {})}
        return Stream(self, "process.Process/Start", {"process": config, **rest}, headers)

    def connect(self, pid, headers=None):
        return Stream(self, "process.Process/Connect", {"process": {"pid": pid}}, headers)

    def sh(self, script, **options):
        return self.start("/bin/sh", "-c", script, **{"stdin": False, **options})

    def pids(self):
        return [entry["pid"] for entry in self.unary("process.Process/List", {})[1]["processes"]]

    def raw(self, *pieces):
        """Sends bytes as they are; what comes back until the agent closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_SECONDS) as connection:
            received = b""
            try:
                for piece in pieces:
                    connection.sendall(piece)
                while data := connection.recv(65536):
                    received += data
            except (ConnectionResetError, BrokenPipeError):
                pass
            return received

    def wakes(self):
        """How often it has gone to sleep so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(line for line in lines if line.startswith("voluntary_ctxt_switches"))

    def rests(self, seconds=0.2):
        """Whether nothing wakes it for so long."""
        before = self.wakes()
        time.sleep(seconds)
        return state_of(self.process.pid) == "S" and self.wakes() == before

    def resident_bytes(self):
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture(scope="module")
def shared_agent():
    agent = Agent()
    before = agent.descriptors()
    yield agent
    assert agent.process.poll() is None, "the agent died"
    wait_until(lambda: agent.descriptors() <= before, f"{agent.descriptors()} descriptors are open, {before} were")
    agent.process.kill()
    agent.process.wait()


@pytest.fixture
def agent(shared_agent):
    yield shared_agent
    assert shared_agent.answers()


@pytest.fixture
def new_agent():
    agent = Agent()
    yield agent
    agent.process.kill()
    agent.process.wait()


def text_of(body):
    return json.loads(body)["message"]


# ---- processes ----


def test_streams_and_status_are_the_programs_own(agent):
    output, end = agent.sh("echo out; echo err >&2; exit 3").run()
    assert (output["stdout"], output["stderr"]) == (b"out\n", b"err\n")
    assert end == {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}
    assert agent.sh("true").run()[1] == {"exitCode": 0, "exited": True, "status": "exit status 0"}


def test_death_by_a_signal_has_the_signals_name(agent):
    expected = {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"}
    assert agent.sh("kill -KILL $$").run()[1] == expected
    assert agent.sh("kill -TERM $$").run()[1]["status"] == "signal: terminated"


def test_all_output_comes_before_the_end(agent):
    output, end = agent.sh("head -c 5000000 /dev/zero").run()
    assert len(output["stdout"]) == 5000000
    assert end["exitCode"] == 0


@pytest.mark.parametrize("arguments, options, code", [
    (["/nonexistent/program"], {}, "not_found"),
    (["/etc/passwd"], {}, "permission_denied"),
    (["true"], {"process": {"cwd": "/nonexistent"}}, "invalid_argument"),
    (["true"], {"headers": {"Authorization": "Basic " + base64.b64encode(b"nobody-here:").decode()}}, "unauthenticated"),
    (["true"], {"headers": {"Authorization": "Basic !!!"}}, "unauthenticated"),
    (["true"], {"headers": {"Connect-Timeout-Ms": "12345678901"}}, "invalid_argument"),
    (["true"], {"process": {"envs": {"A=B": "x"}}}, "invalid_argument"),
    (["true"], {"process": {"args": [1]}}, "invalid_argument"),
    (["true"], {"pty": {"size": {"cols": -1}}}, "invalid_argument"),
    ([""], {}, "invalid_argument"),
])
def test_what_cannot_be_started_says_why(agent, arguments, options, code):
    stream = agent.start(*arguments, **options)
    assert stream.status == 200
    assert stream.run() == ({"stdout": b"", "stderr": b"", "pty": b""}, None)
    assert stream.error["code"] == code
    assert stream.error["message"]


def test_environment_directory_and_lookup(agent, tmp_path):
    process = {"envs": {"A": "1", "HOME": "/elsewhere"}, "cwd": str(tmp_path)}
    output, _ = agent.sh("echo $A $HOME $USER $LOGNAME; pwd; tty; cat /proc/self/stat", process=process).run()
    first, directory, terminal, stat = output["stdout"].decode().splitlines()
    assert first.startswith("1 /elsewhere ") and len(first.split()) == 4
    assert directory == str(tmp_path)
    assert terminal == "not a tty"
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho found")
    program.chmod(0o755)
    assert agent.start("program", process={"envs": {"PATH": str(tmp_path)}}).run()[0]["stdout"] == b"found\n"


def test_a_process_leads_a_session_without_the_agents_descriptors(agent):
    output, _ = agent.sh("cat /proc/$$/stat; ls /proc/$$/fd").run()
    stat, *descriptors = output["stdout"].decode().splitlines()
    pid, _, _, _, group, session = stat.split()[:6]
    assert pid == group == session
    assert set(descriptors) <= {"0", "1", "2"}


def test_input_is_open_unless_refused(agent):
    assert agent.start("cat", stdin=False).run()[1]["exitCode"] == 0
    stream = agent.start("cat")
    pid = stream.pid()
    data = os.urandom(1 << 20)
    for part in (data[: 1 << 19], data[1 << 19 :]):
        assert agent.process_call("SendInput", pid, input={"stdin": base64.b64encode(part).decode()}) == (200, {})
    assert agent.process_call("CloseStdin", pid) == (200, {})
    output, end = stream.run()
    assert output["stdout"] == data
    assert end["exitCode"] == 0
    status, body = agent.process_call("SendInput", pid, input={"stdin": ""})
    assert (status, body["code"]) == (404, "not_found")


def test_input_is_acknowledged_when_the_program_takes_it(agent, tmp_path):
    stream = agent.start("/bin/sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; wc -c")
    pid = stream.pid()
    text = json.dumps({"process": {"pid": pid}, "input": {"stdin": base64.b64encode(b"x" * 200000).decode()}})
    waiting = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=LIMIT_SECONDS)
    waiting.request("POST", "/process.Process/SendInput", text, {"Content-Type": "application/json"})
    assert select.select([waiting.sock], [], [], 0.3)[0] == [], "acknowledged before it could be written"
    (tmp_path / "go").touch()
    assert waiting.getresponse().status == 200
    waiting.close()
    agent.process_call("CloseStdin", pid)
    assert stream.run()[0]["stdout"] == b"200000\n"


def test_unread_input_is_bounded_and_fails_when_the_program_ends(agent):
    stream = agent.start("sleep", "1000")
    pid = stream.pid()
    text = json.dumps({"process": {"pid": pid}, "input": {"stdin": base64.b64encode(bytes(9 << 20)).decode()}})
    waiting = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=LIMIT_SECONDS)
    waiting.request("POST", "/process.Process/SendInput", text, {"Content-Type": "application/json"})
    assert select.select([waiting.sock], [], [], 0.3)[0] == []
    status, body = agent.unary("process.Process/SendInput", json.loads(text))
    assert (status, body["code"]) == (429, "resource_exhausted")
    assert agent.process_call("SendSignal", pid, signal=9)[0] == 200
    assert waiting.getresponse().status == 400
    waiting.close()
    assert stream.run()[1]["exited"] is False


def test_list_shows_what_runs(agent):
    stream = agent.start("sleep", "1000", tag="my tag", process={"envs": {"A": "b"}, "cwd": "/"})
    pid = stream.pid()
    entry = next(e for e in agent.unary("process.Process/List", {})[1]["processes"] if e["pid"] == pid)
    config = {"cmd": "sleep", "args": ["1000"], "envs": {"A": "b"}, "cwd": "/"}
    assert entry == {"pid": pid, "tag": "my tag", "config": config}
    assert agent.unary("process.Process/SendSignal", {"process": {"tag": "my tag"}, "signal": "SIGNAL_SIGTERM"}) == (200, {})
    assert stream.run()[1]["status"] == "signal: terminated"
    assert pid not in agent.pids()


def test_signals_reach_the_whole_group(agent, tmp_path):
    script = f"sleep 1000 & echo $! > {tmp_path}/child; (setsid true); wait"
    stream = agent.sh(script)
    pid = stream.pid()
    child = int(wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text(), "the child"))
    assert agent.process_call("SendSignal", pid, signal="SIGNAL_SIGKILL") == (200, {})
    stream.run()
    wait_until(lambda: not Path(f"/proc/{child}/cwd").is_symlink() or "Z" in state_of(child), "the child's end")


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.mark.parametrize("procedure, rest, code", [
    ("SendSignal", {"signal": "SIGNAL_SIGKILL"}, "not_found"),
    ("SendSignal", {"signal": "SIGNAL_SIGHUP"}, "invalid_argument"),
    ("SendSignal", {}, "invalid_argument"),
    ("SendInput", {"input": {"stdin": ""}}, "not_found"),
    ("CloseStdin", {}, "not_found"),
    ("Update", {"pty": {"size": {"cols": 1, "rows": 1}}}, "not_found"),
])
def test_calls_on_an_unknown_process(agent, procedure, rest, code):
    assert agent.process_call(procedure, 4194304, **rest)[1]["code"] == code


def test_the_time_limit_kills_the_session(agent, tmp_path):
    stream = agent.sh(f"sleep 1000 & echo $! > {tmp_path}/child; wait", headers={"Connect-Timeout-Ms": "300"})
    pid = stream.pid()
    watcher = agent.connect(pid)
    assert watcher.pid() == pid
    assert stream.run()[1] is None
    assert stream.error["code"] == "deadline_exceeded"
    assert watcher.run()[1]["status"] == "signal: killed"
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: state_of(child) == "Z", "the child's end")


def test_a_client_that_leaves_does_not_end_the_process(agent, tmp_path):
    stream = agent.sh(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo late; exit 5")
    pid = stream.pid()
    stream.close()
    again = agent.connect(pid)
    assert again.pid() == pid
    assert pid in agent.pids()
    (tmp_path / "go").touch()
    output, end = again.run()
    assert output["stdout"] == b"late\n"
    assert end["exitCode"] == 5
    after_its_end = agent.connect(pid)
    assert after_its_end.pid() == pid
    assert after_its_end.run()[1] == end


def test_output_without_a_client_is_dropped(agent):
    stream = agent.sh("head -c 1000000 /dev/zero; exit 7")
    pid = stream.pid()
    stream.close()
    wait_until(lambda: pid not in agent.pids(), "the end of the process")
    watcher = agent.connect(pid)
    watcher.pid()
    assert watcher.run()[1]["exitCode"] == 7


def test_a_slow_client_makes_only_its_process_wait(agent, tmp_path):
    size = 100000000
    stream = agent.sh(f"head -c {size} /dev/zero; touch {tmp_path}/done")
    pid = stream.pid()
    wait_until(agent.rests, "the agent, whose client reads nothing, to rest")
    assert not (tmp_path / "done").exists() and pid in agent.pids()
    assert agent.resident_bytes() < 20 << 20
    assert agent.sh("echo quick").run()[0]["stdout"] == b"quick\n"
    output, end = stream.run()
    assert len(output["stdout"]) == size
    assert end["exitCode"] == 0


def test_a_slow_client_that_leaves_frees_the_process(agent, tmp_path):
    stream = agent.sh(f"head -c 30000000 /dev/zero; touch {tmp_path}/done")
    stream.pid()
    stream.close()
    wait_until((tmp_path / "done").exists, "the end of the process")


def test_a_grandchild_on_the_pipe_does_not_hold_up_the_end(agent, tmp_path):
    script = f"(while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo x; touch {tmp_path}/written) & echo main"
    output, end = agent.sh(script).run()
    assert output["stdout"] == b"main\n"
    assert end["exitCode"] == 0
    (tmp_path / "go").touch()
    wait_until((tmp_path / "written").exists, "the grandchild, whose pipe must not be closed")


def test_a_grandchild_that_writes_on_and_on_does_not_hold_up_the_end(agent, tmp_path):
    assert agent.sh(f"yes & echo $! > {tmp_path}/pid").run()[1]["exitCode"] == 0
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_silence_is_filled_with_keepalives(agent):
    stream = agent.sh("sleep 1000", headers={"Keepalive-Ping-Interval": "1"})
    pid = stream.pid()
    assert stream.next() == {"keepalive": {}}
    agent.process_call("SendSignal", pid, signal="SIGNAL_SIGKILL")
    stream.run()


def test_connect_has_a_time_limit_of_its_own(agent):
    stream = agent.sh("sleep 1000")
    pid = stream.pid()
    watcher = agent.connect(pid, headers={"Connect-Timeout-Ms": "100"})
    watcher.pid()
    watcher.run()
    assert watcher.error["code"] == "deadline_exceeded"
    assert pid in agent.pids()
    agent.process_call("SendSignal", pid, signal="SIGNAL_SIGKILL")
    stream.run()


def send_pty(agent, pid, data):
    return agent.process_call("SendInput", pid, input={"pty": base64.b64encode(data).decode()})


def test_a_terminal_has_size_input_and_control(agent):
    script = "trap 'echo INT; exit 4' INT; stty size; read x; stty size; tty; echo ready; while :; do sleep 0.05; done"
    stream = agent.start("/bin/sh", "-c", script, pty={"size": {"cols": 91, "rows": 17}})
    pid = stream.pid()
    assert base64.b64decode(stream.next()["data"]["pty"]) == b"17 91\r\n"
    assert agent.process_call("Update", pid, pty={"size": {"cols": 92, "rows": 18}}) == (200, {})
    assert send_pty(agent, pid, b"\n") == (200, {})
    seen = b""
    for event in stream:
        seen += base64.b64decode(event["data"]["pty"])
        if b"ready" in seen:
            break
    assert b"18 92" in seen and b"pts/" in seen
    status, body = agent.process_call("SendInput", pid, input={"stdin": ""})
    assert (status, body["code"]) == (400, "failed_precondition")
    assert agent.process_call("CloseStdin", pid)[1]["code"] == "failed_precondition"
    assert send_pty(agent, pid, b"\x03") == (200, {})
    output, end = stream.run()
    assert b"INT" in output["pty"]
    assert end["exitCode"] == 4


def test_a_hundred_processes_at_once(agent):
    streams = [agent.sh(f"echo {i}; sleep 0.2; exit {i}") for i in range(100)]
    for i, stream in enumerate(streams):
        output, end = stream.run()
        assert (output["stdout"], end["exitCode"]) == (f"{i}\n".encode(), i)


# ---- files by procedure ----


def test_directories_and_entries(agent, tmp_path):
    top = f"{tmp_path}/top"
    status, made = agent.unary("filesystem.Filesystem/MakeDir", {"path": f"{top}/a/b"})
    assert status == 200
    assert made["entry"]["type"] == "FILE_TYPE_DIRECTORY"
    assert made["entry"]["permissions"] == "drwxr-xr-x"
    assert agent.unary("filesystem.Filesystem/MakeDir", {"path": f"{top}/a/b"})[1]["code"] == "already_exists"
    Path(top, "file").write_text("12345")
    Path(top, "file").chmod(0o4640)
    Path(top, "link").symlink_to("file")
    Path(top, "dangling").symlink_to("nowhere")
    assert agent.unary("filesystem.Filesystem/MakeDir", {"path": f"{top}/file/x"})[1]["code"] == "invalid_argument"

    _, answer = agent.unary("filesystem.Filesystem/Stat", {"path": f"{top}/./a/../file"})
    entry = answer["entry"]
    assert (entry["name"], entry["path"], entry["size"]) == ("file", f"{top}/file", "5")
    assert (entry["mode"], entry["permissions"], entry["type"]) == (0o4640, "urw-r-----", "FILE_TYPE_FILE")
    assert entry["owner"] and entry["group"] and entry["modifiedTime"].endswith("Z")

    def paths(**request):
        listed = agent.unary("filesystem.Filesystem/ListDir", {"path": top, **request})[1]["entries"]
        return [(e["path"].removeprefix(top), e["type"], e.get("symlinkTarget")) for e in listed]

    flat = [
        ("/a", "FILE_TYPE_DIRECTORY", None),
        ("/dangling", "FILE_TYPE_SYMLINK", "nowhere"),
        ("/file", "FILE_TYPE_FILE", None),
        ("/link", "FILE_TYPE_SYMLINK", f"{top}/file"),
    ]
    assert paths() == paths(depth=1) == flat
    assert paths(depth=2) == [flat[0], ("/a/b", "FILE_TYPE_DIRECTORY", None), *flat[1:]]

    status, moved = agent.unary("filesystem.Filesystem/Move", {"source": f"{top}/file", "destination": f"{top}/n/f"})
    assert (status, moved["entry"]["path"]) == (200, f"{top}/n/f")
    assert agent.unary("filesystem.Filesystem/Remove", {"path": f"{top}/link"}) == (200, {})
    assert agent.unary("filesystem.Filesystem/Remove", {"path": top}) == (200, {})
    assert not Path(top).exists()
    assert agent.unary("filesystem.Filesystem/Remove", {"path": top}) == (200, {})


@pytest.mark.parametrize("procedure, request_body, code", [
    ("Stat", {"path": "/nonexistent"}, "not_found"),
    ("Stat", {"path": 5}, "invalid_argument"),
    ("Stat", {"path": "~nobody/x"}, "invalid_argument"),
    ("Stat", {"path": "/" + "x/" * 4000}, "invalid_argument"),
    ("ListDir", {"path": "/nonexistent"}, "not_found"),
    ("ListDir", {"path": "/etc/passwd"}, "invalid_argument"),
    ("ListDir", {"path": "/", "depth": -1}, "invalid_argument"),
    ("Move", {"source": "/nonexistent", "destination": "/tmp/x"}, "not_found"),
    ("Remove", {"path": "/"}, "invalid_argument"),
    ("CreateWatcher", {"path": "/"}, "unimplemented"),
])
def test_bad_paths(agent, procedure, request_body, code):
    assert agent.unary(f"filesystem.Filesystem/{procedure}", request_body)[1]["code"] == code


def test_unknown_procedures(agent):
    assert agent.unary("process.Process/Nope", {})[0] == 501
    stream = Stream(agent, "filesystem.Filesystem/WatchDir", {"path": "/"}, None)
    stream.run()
    assert stream.error["code"] == "unimplemented"


# ---- /files ----


def upload_raw(agent, path, data, **options):
    headers = {"Content-Type": "application/octet-stream", **options.pop("headers", {})}
    return agent.call("POST", f"/files?path={path}", data, headers, **options)


def multipart(*parts, boundary="xyz"):
    body = b""
    for filename, data in parts:
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'.encode()
        body += data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def test_a_file_goes_up_and_down(agent, tmp_path):
    data = os.urandom(3000000)
    path = tmp_path / "new" / "a b"
    status, body = upload_raw(agent, str(path).replace(" ", "%20"), data)
    assert status == 200
    assert json.loads(body) == [{"path": str(path), "name": "a b", "type": "file"}]
    assert path.read_bytes() == data
    assert agent.call("GET", f"/files?path={tmp_path}/new/a+b") == (200, data)
    assert upload_raw(agent, f"{tmp_path}/new/a+b", b"")[0] == 200
    assert agent.call("GET", f"/files?path={tmp_path}/new/a+b") == (200, b"")


def test_a_chunked_upload_of_unknown_length(agent, tmp_path):
    pieces = [os.urandom(50000) for _ in range(40)]
    status, _ = upload_raw(agent, tmp_path / "f", iter(pieces), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert status == 200
    assert (tmp_path / "f").read_bytes() == b"".join(pieces)


def test_several_files_in_one_request(agent, tmp_path):
    first, second = os.urandom(100000), b"--xy\r\n--xy\r"
    body, headers = multipart((f"{tmp_path}/1", first), (f"{tmp_path}/d/2", second))
    status, answer = agent.call("POST", "/files", body, headers)
    assert status == 200
    assert [file["path"] for file in json.loads(answer)] == [f"{tmp_path}/1", f"{tmp_path}/d/2"]
    assert (tmp_path / "1").read_bytes() == first
    assert (tmp_path / "d" / "2").read_bytes() == second
    body, headers = multipart(("ignored", first), ("ignored", second))
    status, answer = agent.call("POST", f"/files?path={tmp_path}/3", body, headers)
    assert status == 400 and "twice" in text_of(answer)
    assert (tmp_path / "3").read_bytes() == first


def test_compressed_uploads(agent, tmp_path):
    data = b"a long run " * 500000
    assert upload_raw(agent, tmp_path / "raw", gzip.compress(data), headers={"Content-Encoding": "gzip"})[0] == 200
    assert (tmp_path / "raw").read_bytes() == data
    body, headers = multipart((f"{tmp_path}/part", data))
    status, _ = agent.call("POST", "/files", gzip.compress(body), {**headers, "Content-Encoding": "gzip"})
    assert status == 200
    assert (tmp_path / "part").read_bytes() == data


@pytest.mark.parametrize("data, encoding", [
    (b"not gzip at all", "gzip"),
    (gzip.compress(b"x" * 1000)[:-9], "gzip"),
    (gzip.compress(b"x") + b"trailing", "gzip"),
    (b"x", "br"),
])
def test_damaged_compression_is_refused(agent, tmp_path, data, encoding):
    status, body = upload_raw(agent, tmp_path / "f", data, headers={"Content-Encoding": encoding})
    assert status == 400
    assert text_of(body)


def test_metadata_stay_with_the_file(agent, tmp_path):
    headers = {"X-Metadata-Author": "me", "X-Metadata-k": "v w"}
    status, body = upload_raw(agent, tmp_path / "f", b"x", headers=headers)
    if status == 500 and "metadata" in text_of(body):
        pytest.skip("this file system has no extended attributes")
    assert json.loads(body)[0]["metadata"] == {"author": "me", "k": "v w"}
    stat = agent.unary("filesystem.Filesystem/Stat", {"path": f"{tmp_path}/f"})[1]
    assert stat["entry"]["metadata"] == {"author": "me", "k": "v w"}
    assert upload_raw(agent, tmp_path / "f", b"x")[0] == 200
    assert "metadata" not in agent.unary("filesystem.Filesystem/Stat", {"path": f"{tmp_path}/f"})[1]["entry"]


def test_files_without_a_size_are_read(agent):
    assert agent.call("GET", "/files?path=/proc/self/comm") == (200, b"dormouse-agent\n")


def test_bad_file_requests(agent, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    assert agent.call("GET", f"/files?path={tmp_path}/no")[0] == 404
    assert agent.call("GET", f"/files?path={tmp_path}")[0] == 400
    assert agent.call("GET", f"/files?path={tmp_path}/pipe")[0] == 400
    assert agent.call("GET", "/files")[0] == 400
    assert agent.call("GET", "/files?path=%zz")[0] == 400
    assert agent.call("GET", "/files?path=%00")[0] == 400
    assert agent.call("GET", "/files?path=/etc/passwd&username=nobody-here")[0] == 401
    assert agent.call("DELETE", "/files?path=/x")[0] == 405
    assert upload_raw(agent, tmp_path, b"x")[0] == 400
    assert upload_raw(agent, tmp_path / "pipe", b"x")[0] == 400
    assert upload_raw(agent, tmp_path / "file" / "below", b"x")[0] == 400
    assert upload_raw(agent, "", b"x")[0] == 400
    assert upload_raw(agent, tmp_path / "x", b"x", headers={"Content-Type": "text/plain"})[0] == 400
    body, headers = multipart(("", b"x"))
    assert agent.call("POST", "/files", body, headers)[0] == 400
    body, headers = multipart((f"{tmp_path}/t", b"x"))
    assert agent.call("POST", "/files", body[:-8], headers)[0] == 400


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_an_early_answer_reaches_a_client_that_is_still_sending(agent, tmp_path, connection):
    status, body = upload_raw(agent, tmp_path, bytes(20 << 20), headers={"Connection": connection})
    assert status == 400 and "directory" in text_of(body)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_is_507(agent, tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        assert upload_raw(agent, tmp_path / "f", bytes(3 << 20))[0] == 507
        assert upload_raw(agent, tmp_path / "g", bytes(1 << 19))[0] == 200
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


# ---- identity ----


def signature_of(path, operation, token, user="", expires=None):
    text = f"{path}:{operation}:{user}:{token}" + (f":{expires}" if expires is not None else "")
    return "v1_" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def test_init_sets_token_environment_and_defaults(new_agent, tmp_path):
    body = {"accessToken": "secret", "envVars": {"A": "1"}, "defaultWorkdir": str(tmp_path), "timestamp": "2000-01-01T00:00:00Z"}
    assert new_agent.call("POST", "/init", json.dumps(body))[0] == 204
    assert abs(time.time() - time.clock_gettime(time.CLOCK_REALTIME)) < 5

    assert new_agent.call("GET", "/health")[0] == 204
    assert new_agent.call("GET", "/envs")[0] == 401
    assert new_agent.call("GET", "/metrics", headers={"X-Access-Token": "secreT"})[0] == 401
    assert new_agent.unary("process.Process/List", {})[0] == 401
    stream = new_agent.sh("true")
    assert stream.status == 401
    stream.close()

    (tmp_path / "f").write_text("content")
    read = f"/files?path={tmp_path}/f"
    assert new_agent.call("GET", read)[0] == 401
    assert new_agent.call("GET", f"{read}&signature=v1_x")[0] == 401
    assert new_agent.call("GET", f"{read}&signature={signature_of(f'{tmp_path}/f', 'write', 'secret')}")[0] == 401
    good = signature_of(f"{tmp_path}/f", "read", "secret").replace("+", "%2B")
    assert new_agent.call("GET", f"{read}&signature={good}") == (200, b"content")
    past = int(time.time()) - 10
    expired = signature_of(f"{tmp_path}/f", "read", "secret", expires=past).replace("+", "%2B")
    status, answer = new_agent.call("GET", f"{read}&signature={expired}&signature_expiration={past}")
    assert (status, json.loads(answer)) == (401, {"code": 401, "message": "signature is already expired"})

    new_agent.headers["X-Access-Token"] = "secret"
    assert new_agent.call("GET", read) == (200, b"content")
    assert new_agent.call("GET", "/envs") == (200, b'{"A":"1"}')
    assert new_agent.sh("echo $A; pwd").run()[0]["stdout"].decode() == f"1\n{tmp_path}\n"
    assert new_agent.call("POST", "/init", b"not json")[0] == 400


def test_metrics_have_all_figures(agent):
    status, body = agent.call("GET", "/metrics")
    figures = json.loads(body)
    assert status == 200
    names = {"ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "disk_used", "disk_total"}
    assert set(figures) == names
    assert 0 < figures["mem_used"] < figures["mem_total"]
    assert 0 < figures["disk_used"] <= figures["disk_total"]
    assert 0 <= figures["cpu_used_pct"] <= 100


# ---- HTTP itself ----


def test_connections_are_kept_and_pipelined(agent):
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = agent.raw(request * 200 + last)
    assert answer.count(b"HTTP/1.1 204 ") == 201
    assert answer.endswith(b"Connection: close\r\n\r\n")
    assert agent.raw(*(bytes([byte]) for byte in last)).count(b"204") == 1
    assert agent.raw(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 204 ")


def test_expect_continue(agent, tmp_path):
    head = f"POST /files?path={tmp_path}/f HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    head += "Content-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", agent.port), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"data")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    refused = agent.raw(head.replace(f"{tmp_path}/f", str(tmp_path)).encode())
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert (tmp_path / "f").read_bytes() == b"data"


@pytest.mark.parametrize("request_bytes, status", [
    (b"garbage\r\n\r\n", b"400"),
    (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
    (b"GET /health HTTP/9.9\r\n\r\n", b"505"),
    (b"GET http:// HTTP/1.1\r\n\r\n", b"400"),
    (b"GET /%zz HTTP/1.1\r\nConnection: close\r\n\r\n", b"400"),
    (b"POST /files HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
    (b"POST /files HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
    (b"POST /process.Process/List HTTP/1.1\r\nContent-Type: application/json\r\n"
     b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    (b"POST /process.Process/List HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
    (b"GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n", b"404"),
    (b"PUT /health HTTP/1.1\r\nConnection: close\r\n\r\n", b"405"),
    (b"GET /process.Process/List HTTP/1.1\r\nConnection: close\r\n\r\n", b"405"),
    (b"POST /process.Process/List HTTP/1.1\r\nConnection: close\r\nContent-Type: x\r\nContent-Length: 2\r\n\r\n{}", b"415"),
    (b"POST /process.Process/List HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
     b"Content-Length: 2\r\n\r\n{]", b"400"),
    (b"POST /process.Process/List HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
     b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", b"501"),
    (b"GET /health HTTP/1.1\r\nX: " + b"x" * 100000 + b"\r\n\r\n", b"431"),
    (b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n", b"431"),
], ids=lambda value: value[:60].decode(errors="replace"))
def test_bad_requests_have_a_clear_answer(agent, request_bytes, status):
    assert agent.raw(request_bytes).startswith(b"HTTP/1.1 " + status), request_bytes[:80]


def test_truncated_requests_end_the_connection(agent):
    for request in (b"GET /hea", b"POST /process.Process/List HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{}"):
        with socket.create_connection(("127.0.0.1", agent.port), timeout=LIMIT_SECONDS) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
            assert connection.recv(1000) == b""


def test_an_endless_header_is_cut_off(agent):
    def flood():
        yield b"GET /health HTTP/1.1\r\n"
        for i in range(100000):
            yield b"X-%d: %s\r\n" % (i, b"y" * 1000)

    assert agent.raw(*flood()).startswith((b"HTTP/1.1 431 ", b""))
    assert agent.resident_bytes() < 20 << 20


def test_silent_connections_do_not_shut_others_out(agent):
    idle = [socket.create_connection(("127.0.0.1", agent.port), timeout=LIMIT_SECONDS) for _ in range(200)]
    assert agent.call("GET", "/health")[0] == 204
    for connection in idle:
        connection.close()


def test_more_connections_than_allowed_wait_for_their_turn(new_agent):
    held = [socket.create_connection(("127.0.0.1", new_agent.port), timeout=LIMIT_SECONDS) for _ in range(300)]
    late = socket.create_connection(("127.0.0.1", new_agent.port), timeout=LIMIT_SECONDS)
    late.sendall(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert select.select([late], [], [], 0.3)[0] == []
    for connection in held:
        connection.close()
    assert late.recv(1000).startswith(b"HTTP/1.1 204 ")
    late.close()


def test_an_idle_agent_sleeps(new_agent):
    wait_until(new_agent.rests, "the agent's rest")
    assert new_agent.rests(seconds=1)
    stream = new_agent.sh("sleep 1000")
    pid = stream.pid()
    wait_until(new_agent.rests, "the agent's rest")
    assert new_agent.rests(seconds=1)
    new_agent.process_call("SendSignal", pid, signal="SIGNAL_SIGKILL")
    stream.run()
