"""Everything at once: calls that get in each other's way, and deaths of every process at random moments.

`make test` runs a few operations of each, `make soak` (DORMOUSE_SOAK=1) all of them.
"""

import http.client
import os
import random
import signal
import subprocess
import threading
import time

import pytest

from guest import Counter, boot_id, soak
from harness import Sandbox, wait_until

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def native(sandbox_id, verb=""):
    return f"/dormouse/v1/sandboxes/{sandbox_id}{verb}"


class Call(threading.Thread):
    """A call of the API under way: `status` and `body` when it is done."""

    def __init__(self, daemon, key, method, path, body=None):
        super().__init__(daemon=True)
        self.arguments = (daemon, key, method, path, body)
        self.status = self.body = None
        self.start()

    def run(self):
        daemon, key, method, path, body = self.arguments
        self.status, self.body = daemon.http(method, path, body, key=key)

    def done(self, seconds=60):
        self.join(seconds)
        assert not self.is_alive(), f"no answer to {self.arguments[2:]} within {seconds} s"
        return self.status, self.body


# ---- a resume during a pause ----


def pause_and_catch(sandbox, key, body=None):
    """A pause under way, once it shows: the call; None if it was done before it could be seen."""
    daemon = sandbox.daemon
    call = Call(daemon, key, "POST", native(sandbox.id, "/pause"), body)
    while call.is_alive():
        if daemon.http("GET", native(sandbox.id), key=key)[1]["state"] == "pausing":
            return call
    return None


@pytest.mark.parametrize("kind", ["memory", "disk-only"])
def test_a_resume_during_a_pause_goes_on_in_the_same_vmm(daemon, kind):
    sandbox = daemon.run("--memory", "512M")
    where, body = ("/dev/shm/data", {}) if kind == "memory" else ("/root/data", {"disk_only": True})
    size = 192 if kind == "memory" else 24
    sandbox.sh(f"set -e; dd if=/dev/urandom of={where} bs=1M count={size} 2>/dev/null; md5sum {where} > /root/sum; sync")
    counter = Counter(sandbox)
    pid, boot, key = sandbox.info()["vmm_pid"], boot_id(sandbox), daemon.api_key()
    for _ in range(20):
        kept, before = daemon.snapshots(), counter.read()
        pause = pause_and_catch(sandbox, key, body)
        status, resumed = daemon.http("POST", native(sandbox.id, "/resume"), {}, key=key)
        assert status == 200 and resumed["state"] == "running", resumed
        if pause is None or pause.done()[0] == 200:  # it had been committed: then this was a resume as any other
            pid, boot = resumed["vmm_pid"], boot_id(sandbox)
            if kind == "disk-only":
                counter = Counter(sandbox)
            continue
        status, refusal = pause.done()
        assert status == 409 and refusal["reason"] == "pause_cancelled", refusal
        assert resumed["was_running"] and resumed["vmm_pid"] == pid == sandbox.info()["vmm_pid"]
        break
    else:
        pytest.fail("no resume came before the commit")
    assert list(daemon.vmm_pids()) == [pid]
    counter.wait_beyond(before)
    assert boot_id(sandbox) == boot
    assert sandbox.sh("date > /root/after; sync; md5sum -c /root/sum", seconds=60).endswith("OK")
    wait_until(lambda: daemon.snapshots() == kept, "nothing is left of the snapshot")
    sandbox.pause()
    sandbox.resume()
    assert counter.read().nonce == before.nonce


def test_many_resumes_make_one_vm(daemon):
    sandbox, key = daemon.run(), daemon.api_key()
    counter = Counter(sandbox)
    before = counter.read()
    for _ in range(soak(3, 50)):
        sandbox.pause()
        calls = [Call(daemon, key, "POST", native(sandbox.id, "/resume"), {}) for _ in range(6)]
        answers = [call.done() for call in calls]
        assert [status for status, _ in answers] == [200] * 6
        assert len({body["vmm_pid"] for _, body in answers}) == 1
        assert [body["was_running"] for _, body in answers].count(False) == 1
        daemon.expect_consistent()
        assert counter.read().nonce == before.nonce


# ---- a kill wins ----


class Killing:
    """About how long each takes: the kill comes in that time."""

    SECONDS = {"run": 0.15, "boot": 2.0, "pause": 0.2, "pause --disk-only": 0.2, "resume": 0.2, "resume --reboot": 2.0,
               "fork": 0.3}  # fmt: skip

    @staticmethod
    def arguments(operation, sandbox):
        if operation in ("run", "boot"):
            return ["run", "-t", "tiny", *(["--memory", "300M"] if operation == "boot" else [])]
        verb, *options = operation.split()
        return [verb, *options, *(["-n", "2"] if verb == "fork" else []), sandbox.id]


@pytest.mark.parametrize("operation", list(Killing.SECONDS))
def test_a_kill_at_any_moment_wins(daemon, operation):
    randomness = random.Random(operation)
    bystander = daemon.run()
    counter = Counter(bystander)
    state = counter.read()
    for _ in range(soak(2, 40)):
        sandbox = None
        if operation not in ("run", "boot"):
            sandbox = daemon.run()
            sandbox.sh("for at in /dev/shm /root; do head -c 8388608 /dev/urandom > $at/data; done; sync")
            if operation.startswith("resume"):
                sandbox.pause()
        client = daemon.popen(*Killing.arguments(operation, sandbox), **PIPES)
        try:
            if sandbox is None:  # its id shows when it is listed
                new = wait_until(lambda: set(daemon.list()) - {bystander.id} or client.poll() is not None, "its id")
                sandbox = Sandbox(daemon, next(iter(new))) if isinstance(new, set) else None
            client.wait(timeout=randomness.uniform(0, Killing.SECONDS[operation]))
        except subprocess.TimeoutExpired:
            pass
        if sandbox is None:
            sandbox = Sandbox(daemon, client.communicate(timeout=30)[0].decode().strip())
        began = time.monotonic()
        sandbox.kill()
        took = time.monotonic() - began
        assert took < 15, f"the kill waited {took:.1f} s for what it was to end"
        daemon.cli("info", sandbox.id).expect_failure("there is no")
        client.communicate(timeout=60)
        for child in set(daemon.list()) - {bystander.id}:  # of a fork that had got so far; each lives by itself
            assert operation == "fork"
            Sandbox(daemon, child).kill()
        wait_until(lambda: set(daemon.vmm_pids().values()) == {bystander.id}, "only the bystander has a VMM")
        assert daemon.vm_directories() == [bystander.id]
    state = counter.wait_beyond(state)
    daemon.expect_consistent()
    bystander.kill()
    daemon.expect_clean()


# ---- the storm ----


class Storm:
    """Threads that call at random, and somebody who kills processes meanwhile."""

    THREADS = 4
    # What a call may be answered with, when nothing but calls get in each other's way.
    EXPECTED = {200, 201, 204, 404, 409, 503}

    def __init__(self, daemon, victim, randomness):
        self.daemon = daemon
        self.victim = victim
        self.randomness = randomness
        self.key = daemon.api_key()
        self.wanted = soak(6, 20)
        self.lock = threading.Lock()
        self.left = soak(50, 200)
        self.surprises = []
        self.deaths = 0
        first = daemon.run()
        # What every one of them has from here on, in memory and on its disk.
        first.sh("for at in /dev/shm /root; do head -c 4194304 /dev/urandom > $at/data; done; "
                 "md5sum /dev/shm/data /root/data > /root/sums; sync")  # fmt: skip
        self.counter = Counter(first)
        self.nonce = self.counter.read().nonce
        # A copy that nobody calls, so that whatever becomes of all others there can be more.
        (self.keeper,) = first.fork()
        self.origin = self.keeper.pause()["snapshot"]

    # Calls

    def call(self, method, path, body=None):
        """The answer; (None, None) where the daemon died, whatever it had done."""
        try:
            status, body = self.daemon.http(method, path, body, key=self.key, seconds=60)
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
            return None, None
        if status not in self.EXPECTED and self.victim == "daemon":
            self.surprises.append((method, path, status, body))
        return status, body

    def listed(self):
        return self.call("GET", "/dormouse/v1/sandboxes")[1] or []

    def create(self):
        self.call("POST", "/dormouse/v1/sandboxes", {"template": self.origin, "timeout_s": 0})

    def step(self, randomness):
        sandboxes = [info["id"] for info in self.listed() if info["state"] != "lost" and info["id"] != self.keeper.id]
        if len(sandboxes) < self.wanted // 2:
            return self.create()
        one = randomness.choice(sandboxes)
        verbs = {"pause": 8, "resume": 8, "fork": 3, "kill": 1 if len(sandboxes) <= self.wanted else 12}
        verb = randomness.choices(list(verbs), verbs.values())[0]
        if verb == "kill":
            return self.call("DELETE", native(one))
        if verb == "fork" and len(sandboxes) < self.wanted:
            return self.call("POST", native(one, "/fork"), {"count": 2, "timeout_s": 0})
        return self.call("POST", native(one, "/pause" if verb == "pause" else "/resume"), {})

    def work(self, seed):
        randomness = random.Random(seed)
        while True:
            with self.lock:
                if self.left == 0:
                    return
                self.left -= 1
            self.step(randomness)

    # Deaths

    def strike(self):
        if self.victim == "daemon":
            self.daemon.kill()
            self.daemon.start()
            return True
        pids = list(self.daemon.vmm_pids()) if self.victim == "vmm" else [self.daemon.image_server()]
        if not pids or pids[0] is None:
            return False
        os.kill(self.randomness.choice(pids), signal.SIGKILL)
        return True

    def run(self):
        threads = [threading.Thread(target=self.work, args=(f"{self.victim}-{i}",)) for i in range(self.THREADS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(self.randomness.uniform(0, 0.8))
            self.deaths += self.strike()
        for thread in threads:
            thread.join()

    # What is left

    def settle(self):
        """Until what the last call and the last death have begun is over."""
        rest = {"running", "paused", "lost"}
        wait_until(lambda: {info["state"] for info in self.daemon.list().values()} <= rest, "all are at rest", 60)
        if self.victim != "daemon":
            wait_until(self.all_alive, "the dead are known to be lost", 30)

    def all_alive(self):
        running = {info["vmm_pid"] for info in self.daemon.list().values() if info["state"] == "running"}
        return running == set(self.daemon.vmm_pids()) and self.daemon.image_server()

    def check_sandbox(self, sandbox, state):
        if state == "paused":
            sandbox.resume()
        sums = sandbox.sh("echo 3 > /proc/sys/vm/drop_caches; md5sum -c /root/sums", seconds=60)
        assert sums.count("OK") == 2, f"{sandbox} was {state}: {sums}"
        assert self.counter.of(sandbox).read().nonce == self.nonce, f"{sandbox} was {state}: another memory"

    def check(self):
        daemon = self.daemon
        self.settle()
        assert self.deaths > 0 and not self.surprises, self.surprises
        daemon.expect_consistent()
        daemon.cli("store", "verify", seconds=180).expect(0)
        listed = daemon.list()
        assert self.keeper.id in listed and listed[self.keeper.id]["state"] == "paused"
        states = [info["state"] for info in listed.values()]
        if self.victim == "daemon":
            assert "lost" not in states, "a daemon's death costs no guest"
        for identity, info in listed.items():
            if info["state"] != "lost":
                self.check_sandbox(Sandbox(daemon, identity), info["state"])
            Sandbox(daemon, identity).kill()
        daemon.cli("kill", "--all").expect(0)
        daemon.expect_clean(60)


@pytest.mark.parametrize("victim", ["daemon", "vmm", "image server"])
def test_storm(new_daemon, victim):
    daemon = new_daemon()
    storm = Storm(daemon, victim, random.Random(victim))
    storm.run()
    storm.check()
    # As good as new.
    sandbox = daemon.run()
    sandbox.pause()
    sandbox.resume()
    assert sandbox.sh("echo on") == "on"
