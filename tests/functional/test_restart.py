"""The daemon may die at any moment: what runs goes on, what was half done is rolled back, nothing is left over."""

import contextlib
import os
import random
import signal
import subprocess

import pytest

from guest import Counter, boot_id, soak
from harness import Sandbox, wait_until

SEEDS = soak(2, 12)


def test_running_sandboxes_go_on(new_daemon):
    daemon = new_daemon()
    running, paused = daemon.run(), daemon.run()
    counters = [Counter(running), Counter(paused)]
    states = [counter.read() for counter in counters]
    boot = boot_id(running)
    paused.pause()
    before = daemon.list()
    daemon.kill()
    assert set(daemon.vmm_pids()) == {before[running.id]["vmm_pid"]}, "the VMM goes on without the daemon"
    daemon.start()
    daemon.expect_consistent()
    after = daemon.list()
    for identity, info in before.items():
        for field in ("state", "vmm_pid", "template", "snapshot", "parent", "cpus", "created_at", "access_token"):
            assert after[identity][field] == info[field], field
    counters[0].wait_beyond(states[0])
    assert boot_id(running) == boot
    running.pause()
    running.resume()
    paused.resume()
    for counter, state in zip(counters, states):
        counter.wait_beyond(state)
    (child,) = running.fork()
    assert counters[0].of(child).read().nonce == states[0].nonce
    assert [info["name"] for info in daemon.json("template", "ls")] == ["tiny"]
    daemon.cli("kill", "--all").expect(0)
    daemon.expect_clean()


def test_a_stop_and_start_too(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run("--no-internet", "--env", "A=b")
    counter = Counter(sandbox)
    state = counter.read()
    key = daemon.api_key()
    assert daemon.stop() == 0
    assert not daemon.socket.exists()
    daemon.start()
    counter.wait_beyond(state)
    info = sandbox.info()
    assert not info["egress"] and info["env"] == {"A": "b"}
    assert daemon.api_key() == key
    daemon.expect_consistent()


def test_a_vmm_that_died_meanwhile_is_lost_with_a_reason(new_daemon):
    daemon = new_daemon()
    dead, alive = daemon.run(), daemon.run()
    pid = dead.info()["vmm_pid"]
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in daemon.vmm_pids(), "the VMM's end")
    daemon.start()
    assert dead.state() == "lost" and dead.info()["lost_reason"]
    assert alive.sh("echo on") == "on"
    daemon.expect_consistent()
    for verb in ("pause", "resume", "fork"):
        daemon.cli(verb, dead.id).expect_failure("lost")
    dead.kill()
    daemon.cli("kill", "--all").expect(0)
    daemon.expect_clean()


def test_a_vmm_that_nobody_knows_is_ended(new_daemon):
    """As after the loss of a registry: the process carries the data directory's mark, and no record names it."""
    daemon = new_daemon()
    daemon.run()
    daemon.kill()
    for path in daemon.data.glob("registry.db*"):
        path.unlink()
    daemon.start()
    wait_until(lambda: not daemon.vmm_pids(), "the end of the unknown VMM")
    assert daemon.list() == {}
    daemon.expect_clean()


def test_a_daemon_killed_in_its_recovery_starts_again(new_daemon):
    daemon = new_daemon()
    sandboxes = [daemon.run() for _ in range(3)]
    counters = [Counter(sandbox) for sandbox in sandboxes]
    states = [counter.read() for counter in counters]
    randomness = random.Random("recovery")
    for _ in range(6):
        daemon.kill()
        process = subprocess.Popen(daemon.arguments(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        daemon.process = process
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=randomness.uniform(0.002, 0.12))
        process.kill()
        process.wait()
        daemon.process = None
        daemon.start()
    daemon.expect_consistent()
    for counter, state in zip(counters, states):
        counter.wait_beyond(state)


def kill_while_it_stands_still(daemon, sandbox, operation):
    """The device state is written first; then the guest waits for its memory to be copied, here 64 MiB. False: the
    kill came too early or too late."""
    state = daemon.data / "vms" / sandbox.id / "state"
    state.unlink(missing_ok=True)

    def written():
        with contextlib.suppress(FileNotFoundError):
            return state.stat().st_size > 0

    return daemon.kill_during(sandbox, [operation], written)


@pytest.mark.parametrize("operation", ["pause", "fork"])
def test_kill_9_while_the_guest_stands_still(new_daemon, operation):
    daemon = new_daemon()
    sandbox = daemon.run()
    counter = Counter(sandbox)
    sandbox.sh("dd if=/dev/urandom of=/dev/shm/data bs=1M count=64 2>/dev/null; md5sum /dev/shm/data > /root/sum; sync")
    before = counter.read()
    for _ in range(20):
        stood_still = kill_while_it_stands_still(daemon, sandbox, operation)
        daemon.start()
        daemon.expect_consistent()
        if stood_still:
            break
        if sandbox.state() == "paused":
            sandbox.resume()
    else:
        pytest.fail("the daemon was never killed while the guest stood still")
    assert sandbox.state() == "running"
    counter.wait_beyond(before)
    assert sandbox.sh("md5sum -c /root/sum") == "/dev/shm/data: OK"


class Interruption:
    """What is under way when the daemon is killed, and what may have become of it."""

    # Up to which the kill comes: about as long as the call takes. Whenever it comes, what is found must be true.
    SECONDS = {"run": 0.12, "pause": 0.25, "resume": 0.15, "fork": 0.35, "kill": 0.1, "build": 4.0}

    def __init__(self, daemon, operation, randomness):
        self.daemon = daemon
        self.operation = operation
        self.randomness = randomness
        self.bystander = daemon.run()
        self.subject = daemon.run()
        self.counters = [Counter(self.bystander), Counter(self.subject)]
        for sandbox in (self.bystander, self.subject):
            sandbox.sh(
                "dd if=/dev/urandom of=/dev/shm/data bs=1M count=4 2>/dev/null; md5sum /dev/shm/data > /root/sum; sync"
            )
        self.states = [counter.read() for counter in self.counters]
        if operation == "resume":
            self.subject.pause()
        self.known = set(daemon.list())

    def arguments(self):
        if self.operation == "run":
            return ["run", "-t", "tiny"]
        if self.operation == "build":
            return ["template", "build", "interrupted", "--recipe", "tiny", "--memory", "128M"]
        count = ["-n", "2"] if self.operation == "fork" else []
        return [self.operation, *count, self.subject.id]

    def interrupt(self):
        client = self.daemon.popen(*self.arguments(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            client.wait(timeout=self.randomness.uniform(0, self.SECONDS[self.operation]))
        except subprocess.TimeoutExpired:
            pass
        self.daemon.kill()
        out, error = client.communicate(timeout=30)
        if client.returncode != 0:
            assert client.returncode == 1 and error.strip(), (client.returncode, out, error)

    def expect_intact(self, sandbox, counter, state):
        assert sandbox.sh("md5sum -c /root/sum", seconds=60) == "/dev/shm/data: OK"
        counter.wait_beyond(state)

    def check(self):
        listed = self.daemon.list()
        expected = self.known if self.operation in ("run", "fork", "kill") else set(listed)
        assert self.known - {self.subject.id} <= set(listed)
        if self.operation != "kill":
            assert self.subject.id in listed
        assert listed[self.bystander.id]["state"] == "running"
        self.expect_intact(self.bystander, self.counters[0], self.states[0])
        if self.subject.id in listed:
            assert listed[self.subject.id]["state"] in ("running", "paused")
            if listed[self.subject.id]["state"] == "paused":
                self.subject.resume()
            self.expect_intact(self.subject, self.counters[1], self.states[1])
            self.subject.pause()
            self.subject.resume()
            self.expect_intact(self.subject, self.counters[1], self.states[1])
        # Children that had come to run before the kill are there as any other sandbox.
        for identity in set(listed) - expected:
            assert listed[identity]["state"] == "running"
            assert Sandbox(self.daemon, identity).sh("echo on") == "on"
        names = {template["name"] for template in self.daemon.json("template", "ls")}
        assert names - {"interrupted"} == {"tiny"}
        if "interrupted" in names:
            assert self.daemon.run(template="interrupted").sh("echo on") == "on"
            self.daemon.cli("template", "rm", "interrupted").expect(0)


@pytest.mark.parametrize("operation", list(Interruption.SECONDS))
def test_kill_9_in_the_middle_of_anything(new_daemon, operation):
    daemon = new_daemon()
    seeds = max(SEEDS // 3, 1) if operation == "build" else SEEDS
    for seed in range(seeds):
        interruption = Interruption(daemon, operation, random.Random(f"{operation}-{seed}"))
        interruption.interrupt()
        daemon.start()
        daemon.expect_consistent()
        interruption.check()
        daemon.cli("kill", "--all").expect(0)
        daemon.expect_clean()
