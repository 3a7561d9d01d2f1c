"""What the benchmarks measure in: a daemon of their own, tiny templates, and bare QEMUs on the same snapshots.

Sandboxes are driven by the daemon's own API over one kept connection on its unix socket, so that a figure holds no
start of a process and no set-up of a connection. Everything lives in one directory, which a watchdog removes with
all that belongs to it when this process ends, however it ends.
"""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "functional"))

import watchdog  # noqa: E402
from harness import BUILD, Daemon, executable, wait_until  # noqa: E402

# Where the directory is made, and what is downloaded once (the guest's kernel) is kept, which snapshots link to. On a
# disk, since a snapshot in tmpfs would be durable for nothing.
BASE = Path(os.environ.get("DORMOUSE_BENCH_DATA", "/var/cache/dormouse-bench"))

CALL_SECONDS = 120
BARE_SECONDS = 300
# Enough for every sandbox that is started at once.
NETWORK_AHEAD = 24
VMM_AHEAD = 24
SETTLE_SECONDS = 0.4
REFILL_SECONDS = 30


class Api(http.client.HTTPConnection):
    """The daemon's API on its unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=CALL_SECONDS)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def call(self, method, path, body=None):
        """Returns the decoded answer and the wall time in ms from the request to its last byte."""
        text = json.dumps(body) if body is not None else None
        begun = time.monotonic()
        self.request(method, "/dormouse/v1" + path, text, {"Content-Type": "application/json"} if text else {})
        response = self.getresponse()
        answer = response.read()
        elapsed = (time.monotonic() - begun) * 1000
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")
        return (json.loads(answer) if answer else None), elapsed


class Sandbox:
    def __init__(self, world, info):
        self.world = world
        self.id = info["id"]

    def info(self):
        return self.world.api.call("GET", f"/sandboxes/{self.id}")[0]

    def stats(self):
        return self.world.api.call("GET", f"/sandboxes/{self.id}/stats")[0]

    def pause(self):
        """(info, ms)"""
        self.world.settle()
        return self.world.api.call("POST", f"/sandboxes/{self.id}/pause")

    def resume(self):
        """(info, ms)"""
        self.world.settle()
        return self.world.api.call("POST", f"/sandboxes/{self.id}/resume", {"timeout_s": 0})

    def fork(self, count):
        """(sandboxes, ms)"""
        self.world.settle()
        body = {"count": count, "timeout_s": 0}
        answer, elapsed = self.world.api.call("POST", f"/sandboxes/{self.id}/fork", body)
        failed = [result["error"] for result in answer["results"] if "error" in result]
        if failed:
            raise RuntimeError(f"a fork failed: {failed[0]}")
        return [Sandbox(self.world, result["sandbox"]) for result in answer["results"]], elapsed

    def kill(self):
        self.world.api.call("DELETE", f"/sandboxes/{self.id}")

    def sh(self, script):
        self.world.daemon.cli("exec", "-u", "root", self.id, "--", "sh", "-c", script).expect(0)

    def dirty(self, mebibytes):
        """Overwrites so much memory with random bytes: the same file in the guest's tmpfs each time."""
        self.sh(f"dd if=/dev/urandom of=/dev/shm/dirty bs=1M count={mebibytes} conv=notrunc 2>/dev/null")


class World:
    def __init__(self, say):
        self.say = say
        self.templates = {}

    def __enter__(self):
        if os.geteuid() != 0:
            raise RuntimeError("the benchmarks make namespaces, mounts and VMs: run them as root")
        BASE.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="run-", dir=BASE)).resolve()
        self.directory.chmod(0o711)
        command = [sys.executable, watchdog.__file__, str(self.directory)]
        self.watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.watchdog.stdin.close()
        self.watchdog.wait()
        if self.directory.exists():
            print(f"bench: {self.directory} could not be removed", file=sys.stderr)

    def start(self):
        (self.directory / "data").mkdir(mode=0o700)
        for part in ("cache", "kernels"):
            (BASE / part).mkdir(mode=0o700, exist_ok=True)
            (self.directory / "data" / part).symlink_to(BASE / part)
        self.daemon = Daemon(self.directory, "data", network_ahead=NETWORK_AHEAD, vmm_ahead=VMM_AHEAD)
        # In every process that is started from here: the watchdog finds them by it.
        os.environ["DORMOUSE_SOCKET"] = str(self.daemon.socket)
        self.daemon.start()
        self.api = Api(self.daemon.socket)

    def template(self, mebibytes):
        """The name of the template whose guests have so much memory."""
        if mebibytes not in self.templates:
            name = f"tiny-{mebibytes}"
            self.say(f"making the template {name}")
            self.daemon.build(name, "--recipe", "tiny", "--memory", f"{mebibytes}M")
            self.templates[mebibytes] = name
            self.note_arguments(mebibytes)
        return self.templates[mebibytes]

    def arguments(self, mebibytes):
        return self.directory / f"arguments-{mebibytes}"

    def note_arguments(self, mebibytes):
        """Keeps the arguments of a VMM that restores such a guest from its start, for the references."""
        self.restart(vmm_ahead=0)
        sandbox = self.create(mebibytes)
        self.arguments(mebibytes).write_bytes(Path(f"/proc/{sandbox.info()['vmm_pid']}/cmdline").read_bytes())
        sandbox.kill()
        self.restart(vmm_ahead=VMM_AHEAD)

    def restart(self, vmm_ahead):
        self.api.close()
        self.daemon.stop()
        self.daemon.vmm_ahead = vmm_ahead
        self.daemon.start()

    def create(self, mebibytes):
        body = {"template": self.template(mebibytes), "timeout_s": 0}
        return Sandbox(self, self.api.call("POST", "/sandboxes", body)[0])

    def settle(self):
        """Lets what the step before set off in the background end: VMMs' exits, networks made ahead, write-back."""
        time.sleep(SETTLE_SECONDS)

    def refill(self):
        """Waits until as many VMMs wait as the daemon keeps."""
        wait_until(lambda: len(self.daemon.standbys()) == VMM_AHEAD, "VMMs kept ready", REFILL_SECONDS)

    # ---- the references ----

    def bare(self, info):
        """What bare QEMUs of a sandbox's kind are started from."""
        return Bare(self, self.arguments(info["memory_mib"]))


class Bare:
    """Bare QEMUs with the arguments of one sandbox's VMM."""

    def __init__(self, world, arguments):
        self.world = world
        self.arguments = arguments

    def command(self, program, snapshot, *more):
        work = Path(tempfile.mkdtemp(prefix="bare-", dir=self.world.directory))
        data = self.world.daemon.data / "snapshots" / snapshot
        return work, [bench_program(program), self.arguments, data, work, *(str(word) for word in more)]

    def run(self, program, snapshot, *more):
        work, command = self.command(program, snapshot, *more)
        output = subprocess.run(command, stdout=subprocess.PIPE, timeout=BARE_SECONDS, check=True).stdout
        shutil.rmtree(work)
        return json.loads(output)

    def start(self, snapshot, count=1, parallel=1):
        """Starts so many and ends them."""
        self.world.settle()
        return self.run("bare-start", snapshot, count, parallel)

    def start_and_look(self, snapshot, count, parallel, look):
        """Starts so many, calls look(pids) while they run, and ends them."""
        work, command = self.command("bare-start", snapshot, count, parallel, "--hold")
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = process.stdout.readline()
        result = look([guest["pid"] for guest in json.loads(line)["guests"]]) if line else None
        process.stdin.close()
        if process.wait(timeout=BARE_SECONDS) != 0:
            raise RuntimeError("bare-start failed")
        process.stdout.close()
        shutil.rmtree(work)
        return result

    def migrate(self, snapshot):
        self.world.settle()
        return self.run("bare-migrate", snapshot)


def bench_program(name):
    for path in (BUILD / name, BUILD / "bench" / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{BUILD} holds no {name}: run make first")
