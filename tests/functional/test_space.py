"""A disk that fills up costs nobody their sandbox; one that goes away, only those that ran."""

import contextlib
import fcntl
import os
import signal
import struct

import pytest

import watchdog
from guest import Counter
from harness import Daemon, run_process, wait_until

MIB = 1 << 20
SIZE_MIB = 800


@pytest.fixture
def small_disk(directory):
    """An ext4 of a few hundred MiB in a file, mounted below the session's directory."""
    image = directory / "small.img"
    mount = directory / "small"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(SIZE_MIB * MIB)
    run_process(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image]).expect(0)
    run_process(["mount", "-o", "loop", image, mount]).expect(0)
    yield mount
    run_process(["umount", mount]).expect(0)
    image.unlink()
    mount.rmdir()


@pytest.fixture
def small_daemon(small_disk, seed):
    daemon = Daemon(small_disk, "data", seed).start()
    yield daemon
    daemon.dispose()


class Filler:
    """A file that leaves about `left` bytes of the file system free; of 0, not one block."""

    def __init__(self, directory, left):
        self.path = directory / "filler"
        with open(self.path, "wb", buffering=0) as file:
            size = max(self.free(directory) - left - 4 * MIB, 0)
            os.posix_fallocate(file.fileno(), 0, size)
            file.seek(size)
            with contextlib.suppress(OSError):
                while self.free(directory) > left:
                    file.write(bytes(4096))
                    os.fsync(file.fileno())

    @staticmethod
    def free(directory):
        status = os.statvfs(directory)
        return status.f_bavail * status.f_frsize

    def remove(self):
        self.path.unlink()


def dirty(sandbox, mib):
    sandbox.sh("mkdir -p /tmp/ram; mount -t tmpfs ram /tmp/ram; "
               f"dd if=/dev/urandom of=/tmp/ram/data bs=1M count={mib} 2>/dev/null; "
               "md5sum /tmp/ram/data > /tmp/ram/sum")  # fmt: skip


def expect_intact(sandbox):
    assert sandbox.sh("md5sum -c /tmp/ram/sum") == "/tmp/ram/data: OK"


@pytest.mark.parametrize("left_mib", [40, 1, 0])
def test_a_pause_without_space_fails_and_the_sandbox_runs_on(small_daemon, small_disk, left_mib):
    sandbox = small_daemon.run()
    counter = Counter(sandbox)
    dirty(sandbox, 100)
    before = counter.read()
    snapshots = small_daemon.snapshots()
    filler = Filler(small_disk, left_mib * MIB)
    small_daemon.cli("pause", sandbox.id).expect_failure("space|full")
    status, body = small_daemon.http("POST", f"/sandboxes/{sandbox.id}/pause", {})
    assert (status, body["code"]) == (507, 507), body
    small_daemon.cli("fork", sandbox.id).expect_failure("space|full")
    assert sandbox.state() == "running"
    expect_intact(sandbox)
    counter.wait_beyond(before)
    assert small_daemon.snapshots() == snapshots, "something half made was left"
    filler.remove()
    sandbox.pause()
    sandbox.resume()
    expect_intact(sandbox)
    counter.wait_beyond(before)
    sandbox.kill()
    small_daemon.expect_clean()


def test_a_resume_without_space_leaves_it_paused(small_daemon, small_disk):
    sandbox = small_daemon.run()
    dirty(sandbox, 20)
    sandbox.pause()
    filler = Filler(small_disk, 0)
    small_daemon.cli("resume", sandbox.id).expect(1)
    filler.remove()
    assert sandbox.state() == "paused"
    sandbox.resume()
    expect_intact(sandbox)


def test_a_template_build_without_space_leaves_nothing(small_daemon, small_disk):
    filler = Filler(small_disk, 30 * MIB)
    result = small_daemon.cli("template", "build", "another", "--recipe", "tiny", seconds=300)
    result.expect(1)
    assert "space" in result.error.lower()
    filler.remove()
    assert [template["name"] for template in small_daemon.json("template", "ls")] == ["tiny"]
    small_daemon.expect_clean()


def test_killing_needs_no_space(small_daemon, small_disk):
    """Whoever has no space must be able to make some."""
    sandboxes = [small_daemon.run(), small_daemon.run()]
    sandboxes[1].pause()
    filler = Filler(small_disk, 0)
    for sandbox in sandboxes:
        sandbox.kill()
    assert small_daemon.list() == {}
    filler.remove()
    small_daemon.expect_clean()


# ---- a disk that goes away ----

# linux/ext4.h: every call fails from then on, and what was not flushed is gone.
EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2


def take_away(disk):
    directory = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
    finally:
        os.close(directory)


def bring_back(disk):
    run_process(["umount", disk]).expect(0)
    run_process(["mount", "-o", "loop", disk.with_suffix(".img"), disk]).expect(0)


@pytest.fixture
def fleeting(small_disk, seed):
    """A daemon, and a list for the processes to be ended; the disk is there again, however a test ends."""
    daemon = Daemon(small_disk, "data", seed, vmm_ahead=0).start()
    processes = []
    yield daemon, processes
    if not os.access(daemon.data, os.R_OK):
        end(daemon, processes)
        bring_back(small_disk)
    daemon.dispose()


def end(daemon, processes):
    """All at once, as the host."""
    daemon.kill()
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), "the end of its processes")
    for point in watchdog.mounts(daemon.data):
        watchdog.quietly("umount", "--lazy", point)


def test_a_disk_that_goes_away_takes_nothing_committed_along(fleeting, small_disk):
    daemon, processes = fleeting
    run_process(["sync", "-f", small_disk]).expect(0)  # the templates were only copied there
    paused, running = daemon.run(), daemon.run()
    durable = daemon.run("--durable")
    durable.sh("echo flushed > /root/file; sync")
    dirty(paused, 20)
    counter = Counter(paused)
    state = counter.read()
    paused.pause()
    processes += [*daemon.all_vmms(), daemon.image_server()]
    take_away(small_disk)
    for verb, sandbox in (("pause", running), ("fork", running), ("checkpoint", running), ("resume", paused)):
        daemon.cli(verb, sandbox.id).expect_failure("I/O error|Input/output error")
    assert daemon.process.poll() is None
    end(daemon, processes)
    bring_back(small_disk)
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
