"""Snapshots without memory, and booting from what was kept: on purpose only, and never by accident."""

import contextlib
import shutil
import time
from pathlib import Path

import pytest

from guest import Counter, boot_id
from harness import run_process, wait_until

MIB = 1 << 20
FREEZE_SECONDS = 20  # in which the agent must have frozen the guest's file systems
THAW_SECONDS = 5

# Each file it has written holds its own number twice; `last` is the one that is surely there.
WRITER = """
mkdir -p /root/w
number=0
while :; do
    number=$((number + 1))
    echo $number > /root/w/new
    echo $number >> /root/w/new
    mv /root/w/new /root/w/$((number % 40))
    echo $number > /run/last
done
"""

# E2BIG: more file systems than the agent freezes; one "on a disk" by its name.
MANY_MOUNTS = """
seq 260 | sed 's|.*|/tmp/m/&|' | xargs mkdir -p
seq 260 | sed 's|.*|/dev/none /tmp/m/& tmpfs defaults 0 0|' > /tmp/fstab
mount -a -T /tmp/fstab
"""


def write_forever(sandbox):
    sandbox.sh(f"cat > /run/writer.sh <<'END'\n{WRITER}END\n"
               "setsid sh /run/writer.sh >/dev/null 2>&1 &\n"
               "until [ -s /run/last ] && [ $(cat /run/last) -gt 50 ]; do usleep 10000; done")  # fmt: skip


def last_written(sandbox):
    return int(sandbox.sh("until grep . /run/last; do :; done"))


def pause_disk(sandbox):
    return sandbox.daemon.json("pause", "--disk-only", sandbox.id)


def snapshot_info(sandbox, snapshot=None):
    return sandbox.daemon.json("snapshot", "info", snapshot or sandbox.info()["snapshot"])


def features(daemon, snapshot):
    """What the superblock of a snapshot's disk says, without the journal being replayed."""
    text = run_process(["dumpe2fs", "-h", daemon.data / "images/disk" / snapshot]).expect(0).out
    return next(line for line in text.splitlines() if line.startswith("Filesystem features:"))


def expect_sound(daemon, snapshot):
    """The file system is whole as it lies there: nothing to be replayed, nothing to be repaired."""
    assert "needs_recovery" not in features(daemon, snapshot)
    run_process(["e2fsck", "-f", "-n", daemon.data / "images/disk" / snapshot]).expect(0)


def expect_writable(sandbox):
    """Writing reaches the disk, so nothing is frozen."""
    assert sandbox.sh("date > /root/after; sync; echo written", seconds=30) == "written"


# ---- pausing without memory ----


def test_a_busy_disk_is_frozen_and_whole(sandbox):
    daemon = sandbox.daemon
    nonce = Counter(sandbox).read().nonce
    write_forever(sandbox)
    before, boot = last_written(sandbox), boot_id(sandbox)
    paused = pause_disk(sandbox)
    assert paused["state"] == "paused" and daemon.vmm_pids() == {}
    snapshot = snapshot_info(sandbox)
    assert (snapshot["state_bytes"], snapshot["memory_bytes"]) == (0, 0)
    assert snapshot["disk_consistency"] == "frozen"
    expect_sound(daemon, snapshot["id"])
    sandbox.resume()
    assert boot_id(sandbox) != boot
    assert sandbox.exec("grep", "-r", nonce, "/dev/shm", options=["-u", "root"]).status == 1, "memory was kept"
    lines = sandbox.sh("cd /root/w; for i in $(seq 0 39); do echo $i $(cat $i); done").splitlines()
    assert len(lines) == 40
    for line in lines:
        slot, first, second = (int(word) for word in line.split())
        assert first == second and first % 40 == slot, f"a file is torn: {line}"
    assert max(int(line.split()[1]) for line in lines) >= before, "what was written before the pause is not there"
    expect_writable(sandbox)


def test_a_snapshot_with_memory_is_not_frozen(sandbox):
    """The other side of the test above: it is the freezing that leaves a journal with nothing to replay."""
    write_forever(sandbox)
    snapshot = sandbox.pause()["snapshot"]
    assert "needs_recovery" in features(sandbox.daemon, snapshot)
    assert snapshot_info(sandbox)["disk_consistency"] is None


def test_what_cannot_be_frozen_is_synced(sandbox):
    sandbox.sh("mkdir /tmp/other; mount -t tmpfs /dev/none /tmp/other")
    pause_disk(sandbox)
    assert snapshot_info(sandbox)["disk_consistency"] == "synced"
    sandbox.resume()
    expect_writable(sandbox)


def test_a_freeze_that_fails_leaves_the_sandbox_running(sandbox):
    counter = Counter(sandbox)
    write_forever(sandbox)
    before, number = counter.read(), last_written(sandbox)
    sandbox.sh(MANY_MOUNTS)
    kept = sandbox.daemon.snapshots()
    sandbox.daemon.cli("pause", "--disk-only", sandbox.id).expect_failure("freez")
    assert sandbox.state() == "running"
    counter.wait_beyond(before)
    expect_writable(sandbox)
    wait_until(lambda: last_written(sandbox) > number, "the guest's program writes on")
    assert sandbox.daemon.snapshots() == kept
    sandbox.sh("umount /tmp/m/*")
    assert pause_disk(sandbox)["state"] == "paused"


def test_a_freeze_that_hangs_is_given_up(sandbox):
    """The agent is stopped, as by a debugger, and goes on when it has been given up: it must not freeze then."""
    pid = sandbox.info()["vmm_pid"]
    seconds = FREEZE_SECONDS + THAW_SECONDS
    # The agent is the parent of what it runs.
    sandbox.sh(f"(usleep 500000; kill -STOP $PPID; sleep {seconds + 3}; kill -CONT $PPID) >/dev/null 2>&1 &")
    time.sleep(1.5)  # until the agent stands still; nothing in there could still tell
    began = time.monotonic()
    sandbox.daemon.cli("pause", "--disk-only", sandbox.id).expect_failure("freez", "does not answer")
    assert time.monotonic() - began < seconds + 3, "the wait has no bound"
    info = sandbox.info()
    assert (info["state"], info["vmm_pid"]) == ("running", pid)
    expect_writable(sandbox)
    assert pause_disk(sandbox)["state"] == "paused"


def being_stored(daemon):
    """Bytes of layers that aren't committed yet."""
    sizes = 0
    for path in (daemon.data / "layers").glob("tmp.*"):
        with contextlib.suppress(FileNotFoundError):
            sizes += path.stat().st_size
    return sizes


def kill_while_it_is_frozen(daemon, sandbox):
    """While its disk is being captured, 24 MiB of it. False: the kill came too late."""
    write_forever(sandbox)
    sandbox.sh("set -e; dd if=/dev/urandom of=/root/data bs=1M count=24 2>/dev/null; "
               "md5sum /root/data > /root/sum; sync")  # fmt: skip
    return daemon.kill_during(sandbox, ["pause", "--disk-only"], lambda: being_stored(daemon) >= MIB)


def test_kill_9_while_the_guest_is_frozen(new_daemon):
    """The guest's writers wait, and the next daemon must let them go on."""
    daemon = new_daemon()
    for _ in range(20):
        sandbox = daemon.run()
        counter = Counter(sandbox)
        before = counter.read()
        stood_still = kill_while_it_is_frozen(daemon, sandbox)
        daemon.start()
        daemon.expect_consistent()
        if stood_still:
            break
        sandbox.kill()
    else:
        pytest.fail("the daemon was never killed while the guest was frozen")
    assert sandbox.state() == "running"
    counter.wait_beyond(before)
    expect_writable(sandbox)
    assert sandbox.sh("md5sum -c /root/sum", seconds=60) == "/root/data: OK"
    number = last_written(sandbox)
    wait_until(lambda: last_written(sandbox) > number, "the guest's program writes on")


# ---- booting from what was kept ----


@pytest.mark.parametrize("kind", ["disk-only", "memory"])
def test_a_boot_keeps_all_but_memory(daemon, kind):
    sandbox = daemon.run("--cpus", "2", "--memory", "320M", "--env", "COLOUR=red", "--metadata", "purpose=test",
                         "--no-internet", "--timeout", "1h", "--on-timeout", "pause")  # fmt: skip
    sandbox.sh("echo flushed > /root/file; sync; echo gone > /dev/shm/file")
    boot, info = boot_id(sandbox), sandbox.info()
    if kind == "disk-only":
        pause_disk(sandbox)
        resumed = sandbox.resume()
    else:
        sandbox.pause()
        resumed = sandbox.resume("--reboot")
    assert boot_id(sandbox) != boot
    for field in ("id", "cpus", "memory_mib", "disk_bytes", "env", "metadata", "egress", "access_token", "on_timeout",
                  "template", "template_id", "created_at"):  # fmt: skip
        assert resumed[field] == info[field], field
    assert sandbox.sh("nproc") == "2"
    assert int(sandbox.sh("awk '/^MemTotal/ { print $2 }' /proc/meminfo")) > 270 << 10
    assert sandbox.sh("echo $COLOUR; id -un; hostname", user="user").split() == ["red", "user", sandbox.id[:12]]
    assert sandbox.sh("cat /root/file; cat /dev/shm/file 2>&1 || true").splitlines()[0] == "flushed"
    assert "gone" not in sandbox.sh("cat /dev/shm/file 2>&1 || true")
    # What was booted is a sandbox as any other: with memory again.
    counter = Counter(sandbox)
    before = counter.read()
    sandbox.pause()
    assert snapshot_info(sandbox)["state_bytes"] > 0
    boot = boot_id_after_resume(sandbox)
    assert counter.read().nonce == before.nonce
    (child,) = sandbox.fork()
    assert boot_id(child) == boot and counter.of(child).read().nonce == before.nonce


def boot_id_after_resume(sandbox):
    sandbox.resume()
    return boot_id(sandbox)


def test_memory_is_only_given_up_when_asked_to(sandbox):
    counter = Counter(sandbox)
    before, boot = counter.read(), boot_id(sandbox)
    for cycle in range(3):
        sandbox.pause()
        assert boot_id_after_resume(sandbox) == boot
        assert counter.read().nonce == before.nonce, cycle
    sandbox.pause()
    sandbox.resume("--reboot")
    assert boot_id(sandbox) != boot


def test_copies_of_a_sandbox_without_memory_boot(sandbox):
    sandbox.sh("echo kept > /root/file")
    pause_disk(sandbox)
    children = sandbox.fork(2)
    assert sandbox.state() == "paused"
    boots = {boot_id(child) for child in children}
    assert len(boots) == 2
    for number, child in enumerate(children):
        assert child.sh("cat /root/file") == "kept"
        child.sh(f"echo {number} > /root/file; sync")
    sandbox.resume()
    assert sandbox.sh("cat /root/file") == "kept"


# ---- never by accident ----


class Damage:
    """Harm to a layer that only this snapshot needs, which can be undone."""

    def __init__(self, daemon, snapshot):
        (tiny,) = (one["snapshot"] for one in daemon.json("template", "ls") if one["name"] == "tiny")
        theirs = {layer["id"] for layer in daemon.json("snapshot", "inspect", tiny)["layers"]}
        layers = daemon.json("snapshot", "inspect", snapshot)["layers"]
        (own,) = (layer for layer in layers if layer["id"] not in theirs and layer["memory_pages"] > 0)
        self.path = Path(daemon.data / "layers" / own["id"])
        self.aside = Path(daemon.data / "aside")
        shutil.copy2(self.path, self.aside)

    def missing(self):
        self.path.unlink()

    def damaged(self):
        """Nearly all of it: whatever the guest needs first."""
        contents = bytearray(self.path.read_bytes())
        for offset in range(4096, len(contents) - 4096):
            contents[offset] ^= 0x5A
        self.path.write_bytes(contents)

    def undo(self):
        self.path.unlink(missing_ok=True)
        self.aside.rename(self.path)


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_memory_that_cannot_be_read_is_not_replaced_by_a_boot(new_daemon, harm):
    daemon = new_daemon()
    sandbox = daemon.run()
    counter = Counter(sandbox)
    sandbox.sh("dd if=/dev/urandom of=/dev/shm/noise bs=1M count=8 2>/dev/null")
    before, boot = counter.read(), boot_id(sandbox)
    snapshot = sandbox.pause()["snapshot"]
    damage = Damage(daemon, snapshot)
    # Nothing of it may come from a cache: the next image server knows nothing.
    daemon.stop()
    getattr(damage, harm)()
    daemon.start()
    for path in (f"/sandboxes/{sandbox.id}/resume", f"/sandboxes/{sandbox.id}/connect"):
        status, body = daemon.http("POST", path, {"timeout": 60})
        assert status == 409, body
        assert body["code"] == 409 and body["status"] == "failed_precondition", body
        assert body["reason"] == f"snapshot_{harm}", body
        assert sandbox.state() == "paused" and sandbox.info()["snapshot"] == snapshot
        assert snapshot in daemon.snapshots()
        daemon.expect_consistent()
    daemon.cli("resume", sandbox.id).expect_failure(harm)
    daemon.stop()
    damage.undo()
    daemon.start()
    sandbox.resume()
    assert boot_id(sandbox) == boot
    assert counter.read().nonce == before.nonce
