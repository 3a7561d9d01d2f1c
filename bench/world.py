"""What the benchmarks measure in: a daemon of their own, templates, and bare QEMUs on the same snapshots.

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
from harness import BUILD, Daemon, wait_until  # noqa: E402

# Where the directory is made, and what is downloaded once (the guest's kernel) is kept, which snapshots link to. On a
# disk, since a snapshot in tmpfs would be durable for nothing.
BASE = Path(os.environ.get("DORMOUSE_BENCH_DATA", "/var/cache/dormouse-bench"))

CALL_SECONDS = 300
IDLE_SECONDS = 5
PROGRAM_SECONDS = 600
# Enough for every sandbox that is started at once.
NETWORK_AHEAD = 24
VMM_AHEAD = 24
SETTLE_SECONDS = 0.4
LOG_CHARACTERS = 2000
REFILL_SECONDS = 30


class Api(http.client.HTTPConnection):
    """The daemon's API on its unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=CALL_SECONDS)
        self.path = str(path)
        self.last_used = 0

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def be_connected(self):
        """The daemon closes a connection that nobody uses for a while."""
        if time.monotonic() - self.last_used > IDLE_SECONDS:
            self.close()
            self.connect()

    def call(self, method, path, body=None):
        """Returns the decoded answer and the wall time in ms from the request to its last byte."""
        text = json.dumps(body) if body is not None else None
        self.be_connected()
        begun = time.monotonic()
        self.request(method, "/dormouse/v1" + path, text, {"Content-Type": "application/json"} if text else {})
        response = self.getresponse()
        answer = response.read()
        self.last_used = time.monotonic()
        elapsed = (self.last_used - begun) * 1000
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
        command = ("exec", "-u", "root", self.id, "--", "sh", "-c", script)
        self.world.daemon.cli(*command, seconds=CALL_SECONDS).expect(0)

    def dirty(self, mebibytes):
        """Overwrites so much memory with random bytes: the same file in the guest's tmpfs each time."""
        self.sh(f"dd if=/dev/urandom of=/dev/shm/dirty bs=1M count={mebibytes} conv=notrunc 2>/dev/null")

    def bring_worker(self):
        """Puts guest_work.c's program into the guest, and lets its tmpfs grow as large as its memory."""
        program = bench_program("guest-work")
        self.world.daemon.cli("cp", "-u", "root", program, f"{self.id}:/tmp/guest-work").expect(0)
        self.sh(
            "chmod 755 /tmp/guest-work; mkdir -p /dev/shm; mountpoint -q /dev/shm || mount -t tmpfs work /dev/shm; "
            "mount -o remount,size=95% /dev/shm"
        )

    def work(self, what, amount, seed=0, file="work"):
        """As guest_work.c says, on a file in the guest's tmpfs."""
        self.sh(f"/tmp/guest-work {what} /dev/shm/{file} {amount} {seed}")


class World:
    def __init__(self, say):
        self.say = say
        self.templates = {}
        self.exported = None

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

    def __exit__(self, problem=None, *_):
        if problem is not None:
            print(f"the daemon's log ends with:\n{self.daemon.log()[-LOG_CHARACTERS:]}", file=sys.stderr)
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

    def template(self, mebibytes, recipe="tiny", size=None):
        """The name of the template of that recipe whose guests have so much memory, and a disk of that size."""
        name = f"{recipe}-{mebibytes}" + (f"-{size.lower()}" if size else "")
        if name not in self.templates:
            self.say(f"making the template {name}")
            options = ["--recipe", recipe, "--memory", f"{mebibytes}M", *(["--size", size] if size else [])]
            self.daemon.build(name, *options)
            listed = self.api.call("GET", "/templates")[0]
            self.templates[name] = next(template for template in listed if template["name"] == name)
            self.note_arguments(name)
        return name

    def template_snapshot(self, name):
        return self.templates[name]["snapshot"]

    def arguments(self, template):
        return self.directory / f"arguments-{template}"

    def note_arguments(self, template):
        """Keeps the arguments of a VMM that restores such a guest from its start, for the references."""
        self.restart(vmm_ahead=0)
        sandbox = self.create_from(template)[0]
        self.arguments(template).write_bytes(Path(f"/proc/{sandbox.info()['vmm_pid']}/cmdline").read_bytes())
        sandbox.kill()
        self.restart(vmm_ahead=VMM_AHEAD)

    def restart(self, vmm_ahead):
        self.api.close()
        self.daemon.stop()
        self.daemon.vmm_ahead = vmm_ahead
        self.daemon.start()

    def create(self, mebibytes):
        return self.create_from(self.template(mebibytes))[0]

    def create_from(self, template_or_snapshot):
        """(sandbox, ms): what a resume does, of a snapshot that can be taken again and again."""
        info, elapsed = self.api.call("POST", "/sandboxes", {"template": template_or_snapshot, "timeout_s": 0})
        return Sandbox(self, info), elapsed

    def remove_template(self, name):
        """Gives its space back."""
        self.api.call("DELETE", f"/templates/{name}")
        del self.templates[name]

    def settle(self):
        """Lets what the step before set off in the background end: VMMs' exits, networks made ahead, write-back."""
        time.sleep(SETTLE_SECONDS)

    # ---- what snapshots consist of ----

    @property
    def data(self):
        return self.daemon.data

    def snapshot_directory(self, snapshot):
        return self.data / "snapshots" / snapshot

    def image(self, snapshot, kind="memory"):
        """The file that the image server has for it."""
        return self.data / "images" / kind / snapshot

    def export(self, snapshot):
        """(directory, description): the snapshot's images as plain files in the page cache, as export.c says. They
        stay until the next one is asked for."""
        if self.exported is None or self.exported[0] != snapshot:
            self.forget_export()
            directory = Path(tempfile.mkdtemp(prefix="export-", dir=self.directory))
            description = run_program("export-snapshot", self.data, snapshot, directory)
            self.exported = (snapshot, directory, description)
        return self.exported[1:]

    def forget_export(self):
        if self.exported is not None:
            shutil.rmtree(self.exported[1])
            self.exported = None

    def daemon_cpu_seconds(self):
        """What the daemon has used so far, in all its threads."""
        fields = Path(f"/proc/{self.daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def image_server(self):
        """Its process id."""
        return self.daemon.image_server()

    def refill(self):
        """Waits until as many VMMs wait as the daemon keeps."""
        wait_until(lambda: len(self.daemon.standbys()) == VMM_AHEAD, "VMMs kept ready", REFILL_SECONDS)

    # ---- the references ----

    def bare(self, info):
        """What bare QEMUs of a sandbox's kind are started from."""
        return Bare(self, self.arguments(info["template"]))


class Bare:
    """Bare QEMUs with the arguments of one sandbox's VMM."""

    def __init__(self, world, arguments):
        self.world = world
        self.arguments = arguments

    def command(self, snapshot, *more):
        images, _ = self.world.export(snapshot)
        work = Path(tempfile.mkdtemp(prefix="bare-", dir=self.world.directory))
        return work, [self.arguments, images, work, *more]

    def run(self, program, snapshot, *more):
        work, arguments = self.command(snapshot, *more)
        self.world.settle()
        result = run_program(program, *arguments)
        shutil.rmtree(work)
        return result

    def start(self, snapshot, count=1, parallel=1):
        """Starts so many and ends them."""
        return self.run("bare-start", snapshot, count, parallel)

    def start_and_look(self, snapshot, count, parallel, look):
        """Starts so many, calls look(pids) while they run, and ends them."""
        work, arguments = self.command(snapshot, count, parallel, "--hold")
        command = [bench_program("bare-start"), *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = process.stdout.readline()
        result = look([guest["pid"] for guest in json.loads(line)["guests"]]) if line else None
        process.stdin.close()
        if process.wait(timeout=PROGRAM_SECONDS) != 0:
            raise RuntimeError("bare-start failed")
        process.stdout.close()
        shutil.rmtree(work)
        return result

    def migrate(self, snapshot):
        return self.run("bare-migrate", snapshot)


def bench_program(name):
    for path in (BUILD / name, BUILD / "bench" / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{BUILD} holds no {name}: run make first")


def run_program(name, *arguments):
    """The JSON that one of the programs here prints."""
    command = [bench_program(name), *map(str, arguments)]
    output = subprocess.run(command, stdout=subprocess.PIPE, timeout=PROGRAM_SECONDS, check=True).stdout
    return json.loads(output) if output else None


def guest_memory(pid):
    """(start, end) of the mappings of a VMM's memory image, hexadecimal."""
    lines = (line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return [fields[0] for fields in lines if len(fields) > 5 and fields[5].endswith("/memory")]


def status_bytes(pid, key):
    """VmRSS or VmHWM of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no {key}")


def available_bytes():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")
