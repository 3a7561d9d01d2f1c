"""What the functional tests are made of: real daemons, real sandboxes, and shells in them.

A Daemon runs build/dormoused on a data directory of its own; a Sandbox is used as a user uses it, by the dormouse
command. Every wait has a limit: what takes longer fails, with what was printed until then.
"""

import base64
import contextlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import watchdog

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("DORMOUSE_BUILD", ROOT / "build"))

# Where cgroup version 2 is mounted: alone, or beside version 1.
CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
HIERARCHY = next((path for path in CGROUPS if (path / "cgroup.controllers").exists()), None)

# Where an image server mounts its file systems in the data directory.
IMAGE_MOUNTS = ("images/memory", "images/disk", "overlays")
CALL_SECONDS = 90
READY_SECONDS = 30
BUILD_SECONDS = 600
AGENT_PORT = 49983


def executable(name):
    """A program of the build tree: where `make` puts it, or where meson does."""
    for path in (BUILD / name, *sorted(BUILD.glob(f"src/*/{name}"))):
        if path.is_file() and os.access(path, os.X_OK):
            return path.resolve()
    raise FileNotFoundError(f"{BUILD} holds no {name}: run make first")


def wait_until(condition, what, seconds=20):
    """For what gives no event: looks until `condition` returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return result


def without(scratch, *missing):
    """Arguments before a command that make it run where these files, relative to /usr, don't exist."""
    made = "".join(f"mkdir -p $(dirname {path}) && mknod {path} c 0 0 && " for path in missing)  # overlayfs' "gone"
    script = (
        f"mount -t tmpfs scratch {scratch} && mkdir {scratch}/upper {scratch}/work && cd {scratch}/upper && {made}"
        f'mount -t overlay -o lowerdir=/usr,upperdir={scratch}/upper,workdir={scratch}/work usr /usr && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def ask_vmm(path, command):
    """Asks QEMU itself; it talks to one client at a time, so no daemon may be there."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        with connection.makefile("rw", encoding="utf-8") as lines:
            lines.readline()
            for execute in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": execute}) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    assert "error" not in answer, answer
    return answer["return"]


class Result:
    """What a finished command left: status, out (text), out_bytes, error (text)."""

    def __init__(self, arguments, status, out, error):
        self.arguments = [str(argument) for argument in arguments]
        self.status = status
        self.out_bytes = out
        self.out = out.decode(errors="replace")
        self.error = error.decode(errors="replace")

    def __str__(self):
        return (
            f"{' '.join(self.arguments)!r}: status {self.status}\nout: {self.out[-2000:]}\nerror: {self.error[-2000:]}"
        )

    def json(self):
        return json.loads(self.out)

    def expect(self, status):
        assert self.status == status, f"status {status} was expected of {self}"
        return self

    def expect_failure(self, *words, status=1):
        """It failed as the command line promises: that status and one line, which holds all `words` (a|b: one of)."""
        self.expect(status)
        lines = self.error.splitlines()
        assert len(lines) == 1, f"one line of error was expected of {self}"
        for word in words:
            assert any(one.lower() in lines[0].lower() for one in word.split("|")), f"{word!r} was expected of {self}"
        return lines[0]


def run_process(arguments, *, data=b"", seconds=CALL_SECONDS, env=None):
    """Runs to the end and returns a Result."""
    if isinstance(data, str):
        data = data.encode()
    process = subprocess.run(
        [str(argument) for argument in arguments],
        input=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=seconds,
        env=env,
        check=False,
    )
    return Result(arguments, process.returncode, process.stdout, process.stderr)


class Daemon:
    """One dormoused with its data directory DIRECTORY/NAME. `seed` is a data directory to begin with; `wrapper`,
    arguments before the program; `options`, further ones of its own."""

    def __init__(self, directory, name, seed=None, network_ahead=2, vmm_ahead=2, wrapper=(), options=()):
        self.data = Path(directory) / name
        self.socket = Path(directory) / f"{name}.sock"
        self.log_path = Path(directory) / f"{name}.log"
        self.network_ahead = network_ahead
        self.vmm_ahead = vmm_ahead
        self.wrapper = wrapper
        self.options = options
        self.port = 0
        self.process = None
        self.environment = {**os.environ, "DORMOUSE_SOCKET": str(self.socket)}
        if seed is not None:
            clone_data(seed, self.data)

    # ---- life ----

    def arguments(self):
        return [
            *self.wrapper,
            str(executable("dormoused")),
            f"--data={self.data}",
            f"--socket={self.socket}",
            f"--listen=127.0.0.1:{self.port}",
            f"--network-ahead={self.network_ahead}",
            f"--vmm-ahead={self.vmm_ahead}",
            *self.options,
        ]

    def start(self, seconds=READY_SECONDS):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.arguments(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline().decode() if ready else ""
        if not line.startswith("dormoused ready: "):
            self.kill()
            raise AssertionError(f"{self.data.name} did not start: {line!r}\n{self.log()}")
        self.port = int(line.split(",")[0].rsplit(":", 1)[1])
        return self

    def kill(self):
        """As kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def crash(self):
        """Ends all its processes at once, as a loss of power does, but for what the host's kernel had not written."""
        self.kill()
        processes = [*self.all_vmms(), *filter(None, [self.image_server()])]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), "the end of its processes")

    def kill_during(self, sandbox, arguments, seen):
        """Kills it in the middle of a call, once `seen` is true. Whether the guest stood still then."""
        client = self.popen(*arguments, sandbox.id, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while client.poll() is None and not seen():
            pass
        self.kill()
        client.communicate(timeout=30)
        try:
            return ask_vmm(self.data / "vms" / sandbox.id / "qmp.sock", "query-status")["status"] == "paused"
        except (OSError, ValueError):  # its VMM has ended, or ends
            return False

    def stop(self, seconds=30):
        """As an administrator stops it: sandboxes go on. Returns the exit status."""
        self.process.terminate()
        status = self.process.wait(timeout=seconds)
        self.process.stdout.close()
        self.process = None
        return status

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def dispose(self):
        """Ends it with all its sandboxes, and removes the data directory."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.cli("kill", "--all", seconds=60)
                self.stop()
        finally:
            self.crash()
            for point in watchdog.mounts(self.data):
                watchdog.quietly("umount", "--lazy", point)
            self.remove_cgroups()
            shutil.rmtree(self.data, ignore_errors=True)
            self.log_path.unlink(missing_ok=True)

    def remove_cgroups(self):
        """What only a daemon that starts again would sweep; with its VMMs ended they are empty."""
        if HIERARCHY is None or not (self.data / "instance").exists():
            return
        instance = HIERARCHY / "dormouse" / self.instance()
        for group in [*instance.glob("*/"), instance]:
            with contextlib.suppress(OSError):
                group.rmdir()

    # ---- what it is asked ----

    def cli(self, *arguments, data=b"", seconds=CALL_SECONDS, env=None):
        environment = {**self.environment, **(env or {})}
        return run_process([executable("dormouse"), *arguments], data=data, seconds=seconds, env=environment)

    def json(self, *arguments, seconds=CALL_SECONDS):
        """The JSON that a successful command prints."""
        return self.cli(*arguments, "--json", seconds=seconds).expect(0).json()

    def popen(self, *arguments, **options):
        return subprocess.Popen(
            [executable("dormouse"), *(str(argument) for argument in arguments)], env=self.environment, **options
        )

    def build(self, name, *options, seconds=BUILD_SECONDS):
        return self.cli("template", "build", name, *options, seconds=seconds).expect(0).out.strip()

    def run(self, *options, template="tiny"):
        return Sandbox(self, self.json("run", "-t", template, *options)["id"])

    def list(self):
        return {info["id"]: info for info in self.json("ls")}

    def api_key(self):
        return self.json("env")["api_key"]

    def http(self, method, path, body=None, key=None, headers=None, seconds=CALL_SECONDS):
        """A call of the API on TCP: (status, decoded body). `key` None: the right one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        sent = {"X-API-KEY": self.api_key() if key is None else key, **(headers or {})}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return response.status, (json.loads(text) if text[:1] in (b"{", b"[") else text)

    # ---- what it leaves on the host ----

    def instance(self):
        return (self.data / "instance").read_text().strip()

    def all_vmms(self):
        """Process id → name of the VM directory of every VMM process that carries this daemon's mark."""
        try:
            mark = f"DORMOUSE_VMM={self.instance()}/".encode()
        except FileNotFoundError:
            return {}
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                marked = (entry / "environ").read_bytes().startswith(mark)
                mounts = (entry / "mountinfo").read_text() if marked else ""
            except OSError:
                continue
            if marked:
                # Its mark may be older than its name: it was started ahead. The root of /vm is the directory.
                directory = [line.split()[3] for line in mounts.splitlines() if line.split()[4] == "/vm"]
                found[int(entry.name)] = Path(directory[0]).name if directory else ""
        return found

    def standbys(self):
        """Process ids of the VMMs that wait for a guest."""
        return [pid for pid, name in self.all_vmms().items() if name.startswith("standby-")]

    def vmm_pids(self):
        """Process id → sandbox id of every VMM that has a guest."""
        return {pid: name for pid, name in self.all_vmms().items() if not name.startswith("standby-")}

    def vm_directories(self):
        """Sandbox ids for which there is a VM directory."""
        return [name for name in os.listdir(self.data / "vms") if not name.startswith("standby-")]

    def slots(self):
        """Numbers of its network namespaces, those kept ready included."""
        claims = watchdog.CLAIMS
        mine = []
        for claim in claims.iterdir() if claims.is_dir() else []:
            with contextlib.suppress(OSError):
                if claim.name.isdigit() and claim.read_text().partition("\n")[2].strip() == str(self.data):
                    mine.append(int(claim.name))
        return sorted(mine)

    def snapshots(self):
        """Names in the store's directory, hidden ones included."""
        return {entry.name for entry in (self.data / "snapshots").iterdir()}

    def listed_snapshots(self):
        return {snapshot["id"] for snapshot in self.json("snapshot", "ls")}

    def is_image_mount(self, point):
        """The image server's own mounts are there as long as it is."""
        return point in {str(self.data / name) for name in IMAGE_MOUNTS}

    def image_server(self):
        """Process id of its image server, or None."""
        for pid in watchdog.processes(self.data.parent):
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(arguments[0])).name == "dormouse-imaged" and os.fsencode(self.data) in arguments:
                    return pid
        return None

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def leftovers(self):
        """What there is beyond templates and ready namespaces, when no sandbox is left."""
        templates = {template["snapshot"] for template in self.json("template", "ls")}
        found = {
            "sandboxes": list(self.list()),
            "VMM processes": list(self.vmm_pids()) + self.standbys()[self.vmm_ahead :],
            "VM directories": self.vm_directories(),
            "temporary files": os.listdir(self.data / "tmp"),
            "snapshots": list(self.snapshots() - templates),
            "namespaces": self.slots()[self.network_ahead + self.vmm_ahead :],
            "mounts": [point for point in watchdog.mounts(self.data) if not self.is_image_mount(point)],
        }
        return {what: names for what, names in found.items() if names}

    def expect_clean(self, seconds=20):
        """Waits until nothing is left of the sandboxes; namespaces are removed in the background."""
        try:
            wait_until(lambda: not self.leftovers(), "nothing left over", seconds)
        except AssertionError:
            raise AssertionError(f"left over: {self.leftovers()}\n{self.log()[-3000:]}") from None

    def expect_filled(self):
        """Waits until as many VMMs and namespaces are ready as it keeps; no sandbox runs."""
        wanted = (self.vmm_ahead, self.network_ahead + self.vmm_ahead)
        wait_until(
            lambda: (len(self.standbys()), len(self.slots())) == wanted and not self.starts_vmm(),
            "what is kept ready",
            60,
        )

    def starts_vmm(self):
        """Whether a VMM or a namespace is on its way: by what the daemon holds open meanwhile, or not yet."""
        files = Path(f"/proc/{self.process.pid}/fd")
        opened = []
        for name in os.listdir(files):
            with contextlib.suppress(FileNotFoundError):
                opened.append(os.readlink(files / name))
        namespaces = sum(path.startswith("/run/netns/") for path in opened)
        taps = sum(Path(path).name == "tun" for path in opened)  # of namespaces that no VMM has got yet
        return (
            namespaces < len(self.slots())
            or taps > self.network_ahead
            or any(Path(path).name == "vmm.log" for path in opened)
        )

    # ---- what it says is true ----

    def expect_consistent(self):
        """Every sandbox is in a state of rest, and host and registry agree on what there is."""
        listed = self.list()
        vmms = self.vmm_pids()
        assert len(set(vmms.values())) == len(vmms), f"a sandbox with two VMMs: {vmms}"
        running = {identity: info for identity, info in listed.items() if info["state"] == "running"}
        for identity, info in listed.items():
            assert info["state"] in ("running", "paused", "lost"), info
            if info["state"] == "lost":
                assert info["lost_reason"], info
        assert {info["vmm_pid"]: identity for identity, info in running.items()} == vmms
        assert set(self.vm_directories()) == set(running)
        # One that has been superseded is removed in the background.
        wait_until(lambda: self.snapshots() == self.listed_snapshots(), "no half-made snapshot")
        kept = self.listed_snapshots()
        for snapshot in kept:
            assert (self.data / "snapshots" / snapshot / "manifest").exists()
        for info in listed.values():
            if info["state"] == "paused":
                assert info["snapshot"] in kept, info
        least = len(running) + self.network_ahead
        wait_until(lambda: len(self.slots()) == least + len(self.standbys()), f"{least} namespaces and one a standby")


def clone_data(seed, data):
    """A new data directory with the templates of another, whose daemon is stopped."""
    run_process(["cp", "--archive", "--sparse=always", "--reflink=auto", seed, data]).expect(0)
    for name in ("instance", "api-key", "lock"):
        (data / name).unlink(missing_ok=True)
    # Shared by symbolic links, which don't do on another file system: the daemon makes hard links.
    for part in (data / "cache", data / "kernels"):
        if part.is_symlink() and part.stat().st_dev != data.stat().st_dev:
            shared = part.resolve()
            part.unlink()
            if part.name == "kernels":
                run_process(["cp", "--archive", shared, part]).expect(0)


class Sandbox:
    def __init__(self, daemon, identity):
        self.daemon = daemon
        self.id = identity

    def __repr__(self):
        return f"Sandbox({self.id})"

    def info(self):
        return self.daemon.json("info", self.id)

    def state(self):
        return self.info()["state"]

    def stats(self):
        return self.daemon.json("stats", self.id)

    def exec(self, *command, options=(), data=b"", seconds=CALL_SECONDS):
        """Runs a command to its end, whatever its status: a Result."""
        interactive = ["-i"] if data else []
        return self.daemon.cli("exec", *interactive, *options, self.id, "--", *command, data=data, seconds=seconds)

    def sh(self, script, user="root", seconds=CALL_SECONDS, data=b""):
        """The output of a shell script that must succeed, stripped."""
        return self.exec("sh", "-c", script, options=["-u", user], data=data, seconds=seconds).expect(0).out.strip()

    def shell(self, user="root"):
        return Shell(self, user)

    def pause(self):
        return self.daemon.json("pause", self.id)

    def resume(self, *options):
        return self.daemon.json("resume", *options, self.id)

    def fork(self, count=1):
        results = self.daemon.json("fork", "-n", str(count), self.id)["results"]
        assert len(results) == count
        for result in results:
            assert "error" not in result, result
        return [Sandbox(self.daemon, result["sandbox"]["id"]) for result in results]

    def kill(self):
        self.daemon.cli("kill", self.id).expect(0)


class Shell:
    """A shell that stays open in a sandbox: many commands without a process start on the host for each."""

    def __init__(self, sandbox, user="root"):
        self.number = 0
        self.buffer = b""
        self.process = sandbox.daemon.popen(
            "exec", "-i", "-u", user, sandbox.id, "--", "sh",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.set_blocking(self.process.stdout.fileno(), False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def run(self, command, seconds=CALL_SECONDS):
        """The output of a command, stripped; its status must be 0."""
        self.number += 1
        mark = f"[end {self.number} "
        self.process.stdin.write(f"{command}\necho '{mark}'$?]\n".encode())
        self.process.stdin.flush()
        deadline = time.monotonic() + seconds
        while (at := self.buffer.find(mark.encode())) < 0 or b"]" not in self.buffer[at:]:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(left, 0))
            assert ready, f"no answer to {command!r} within {seconds} s; so far {self.buffer!r}"
            block = os.read(self.process.stdout.fileno(), 65536)
            assert block, f"the shell ended at {command!r}; before that {self.buffer!r}"
            self.buffer += block
        output, rest = self.buffer[:at], self.buffer[at + len(mark) :]
        status, _, self.buffer = rest.partition(b"]\n")
        assert status == b"0", f"{command!r} failed with {status.decode()}: {output!r}"
        return output.decode(errors="replace").strip()

    def close(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Outside:
    """A neighbour of the host that is not the host: a network namespace at the other end of a veth pair."""

    HOST_ADDRESS = "198.51.100.1"
    ADDRESS = "198.51.100.2"

    def __init__(self, name):
        self.name = name
        self.interface = f"dmt{os.getpid()}"
        commands = f"""
            set -e
            ip netns add {name}
            ip link add {self.interface} type veth peer name eth0 netns {name}
            ip addr add {self.HOST_ADDRESS}/30 dev {self.interface}
            ip link set {self.interface} up
            ip -n {name} addr add {self.ADDRESS}/30 dev eth0
            ip -n {name} link set eth0 up
            ip -n {name} link set lo up
        """
        run_process(["sh", "-c", commands]).expect(0)

    def listen(self):
        """A listening TCP socket on all addresses of the namespace."""
        with in_network_namespace(self.name):
            return listen("0.0.0.0")

    def remove(self):
        run_process(["ip", "netns", "delete", self.name]).expect(0)


@contextlib.contextmanager
def in_network_namespace(name):
    """Sockets that are made meanwhile belong to that namespace (os.setns is newer than Debian 12's Python)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path):
        with open(path, "rb") as namespace:
            if libc.setns(namespace.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {path}")

    with open("/proc/thread-self/ns/net", "rb") as own:
        enter(f"/run/netns/{name}")
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{own.fileno()}")


def listen(address):
    listener = socket.create_server((address, 0))
    listener.settimeout(10)
    return listener


def connect_frame(message):
    """One message of a Connect stream, as the agent's protocol wants it."""
    text = json.dumps(message).encode()
    return b"\0" + len(text).to_bytes(4, "big") + text


def basic_user(name):
    return "Basic " + base64.b64encode(f"{name}:".encode()).decode()
