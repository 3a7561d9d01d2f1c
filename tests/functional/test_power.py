"""The host loses power, or the disk: what was committed is there again, and what was answered was committed.

The file system is shut down under the daemon: from then on every call fails, and what was not flushed is gone.
"""

import fcntl
import os
import random
import struct
import threading
import time

import pytest

import watchdog
from guest import Counter, soak
from harness import Daemon, run_process, wait_until

# linux/ext4.h
EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2


@pytest.fixture
def fleeting(small_disk, seed):
    """A daemon on a disk that can go away, and is there again, however a test ends."""
    daemon = Fleeting(small_disk, seed)
    yield daemon
    daemon.bring_back()
    daemon.dispose()


class Fleeting(Daemon):
    def __init__(self, disk, seed):
        super().__init__(disk, "data", seed, vmm_ahead=0)
        self.disk = disk
        self.known_instance = None
        self.server = None  # the image server's process, while the disk is away
        run_process(["sync", "-f", disk]).expect(0)  # the templates were only copied there
        self.start()
        self.known_instance = self.instance()

    def instance(self):
        return self.known_instance or super().instance()

    def image_server(self):
        return self.server or super().image_server()

    def take_away(self):
        self.server = self.image_server()
        directory = os.open(self.disk, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(directory)

    def bring_back(self):
        """With everything ended that ran, as by a restart of the host."""
        if self.server is None:
            return
        self.crash()
        for point in watchdog.mounts(self.data):
            watchdog.quietly("umount", "--lazy", point)
        run_process(["umount", self.disk]).expect(0)
        image = self.disk.with_suffix(".img")
        # The namespaces of what ran, and the mounts in them, end a moment after it.
        wait_until(lambda: not run_process(["losetup", "--associated", image]).out, "the end of the file system")
        run_process(["mount", "-o", "loop", image, self.disk]).expect(0)
        self.server = None


def fill(sandbox):
    sandbox.sh("for at in /dev/shm /root; do head -c 8388608 /dev/urandom > $at/data; done; "
               "md5sum /dev/shm/data /root/data > /root/sums; sync")  # fmt: skip


def expect_intact(sandbox):
    assert sandbox.sh("md5sum -c /root/sums").count("OK") == 2


def test_a_disk_that_goes_away_takes_nothing_committed_along(fleeting):
    daemon = fleeting
    paused, running = daemon.run(), daemon.run()
    durable = daemon.run("--durable")
    durable.sh("echo flushed > /root/file; sync")
    fill(paused)
    counter = Counter(paused)
    state = counter.read()
    paused.pause()
    daemon.take_away()
    for verb, sandbox in (("pause", running), ("fork", running), ("checkpoint", running), ("resume", paused)):
        daemon.cli(verb, sandbox.id).expect_failure("I/O error|Input/output error")
    assert daemon.process.poll() is None
    daemon.bring_back()
    daemon.start()
    assert [one.state() for one in (paused, running, durable)] == ["paused", "lost", "paused"]
    assert running.info()["lost_reason"]
    daemon.cli("store", "verify").expect(0)
    paused.resume()
    expect_intact(paused)
    counter.wait_beyond(state)
    durable.resume()
    assert durable.sh("cat /root/file") == "flushed"
    daemon.cli("kill", "--all").expect(0)
    daemon.expect_clean()


class Client(threading.Thread):
    """Pauses, resumes and keeps one sandbox until something fails; knows what was answered."""

    def __init__(self, sandbox, name):
        super().__init__()
        self.sandbox = sandbox
        self.name = name
        self.kept = None  # the name of the last checkpoint that was answered
        self.answered = self.asked = "running"

    def run(self):
        for number in range(1000):
            for verb, state in (("pause", "paused"), ("resume", "running"), ("checkpoint", "running")):
                name = [f"{self.name}:{number}"] if verb == "checkpoint" else []
                self.asked = state
                if self.sandbox.daemon.cli(verb, self.sandbox.id, *name).status != 0:
                    return
                self.answered = state
                self.kept = name[0] if name else self.kept

    def expect_true(self):
        """What was answered was so, and what was under way is done or not."""
        state = self.sandbox.state()
        if self.answered == self.asked == "paused":
            assert state == "paused"
        assert state in ("paused", "lost")
        if state == "paused":
            self.sandbox.resume()
            expect_intact(self.sandbox)
        self.sandbox.kill()
        if self.kept:
            copy = self.sandbox.daemon.run(template=self.kept)
            expect_intact(copy)
            copy.kill()


def test_power_that_goes_at_any_moment(fleeting):
    daemon = fleeting
    randomness = random.Random(5)
    origin = daemon.run()
    fill(origin)
    for round_number in range(soak(1, 30)):
        clients = [Client(child, f"kept{round_number}-{n}") for n, child in enumerate(origin.fork(2))]
        for one in clients:  # what was made just now might be unknown
            one.sandbox.pause()
            one.sandbox.resume()
        origin.pause()
        for one in clients:
            one.start()
        time.sleep(randomness.uniform(0, 1.5))
        daemon.take_away()
        for one in clients:
            one.join(60)
            assert not one.is_alive(), "a call is never answered"
        daemon.bring_back()
        daemon.start()
        daemon.cli("store", "verify", seconds=120).expect(0)
        for one in clients:
            one.expect_true()
        for snapshot in daemon.json("snapshot", "ls"):
            if snapshot["checkpoint"]:
                daemon.cli("snapshot", "rm", snapshot["id"]).expect(0)
        origin.resume()
        expect_intact(origin)
    origin.kill()
    daemon.expect_clean()
