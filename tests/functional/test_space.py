"""A disk that fills up costs nobody their sandbox."""

import contextlib
import os

import pytest

from guest import Counter
from harness import Daemon

MIB = 1 << 20


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
