"""Pause and resume: memory, disk and processes go on where they were."""

import random
import time
from pathlib import Path

import pytest

from guest import Counter, boot_id, clock_offset
from harness import wait_until


def test_a_program_goes_on_where_it_was(sandbox):
    counter = Counter(sandbox)
    sandbox.sh("echo kept > /dev/shm/file; echo kept > /home/user/file; echo unsynced > /root/file")
    boot = boot_id(sandbox)
    before = counter.read()
    paused = sandbox.pause()
    assert paused["state"] == "paused" and paused["vmm_pid"] is None
    assert sandbox.daemon.vmm_pids() == {}
    resumed = sandbox.resume()
    assert resumed["state"] == "running" and not resumed["was_running"]
    first = counter.read()
    assert (first.nonce, first.pid) == (before.nonce, before.pid)
    assert first.count >= before.count
    counter.wait_beyond(first)
    assert sandbox.sh("cat /dev/shm/file /home/user/file /root/file").split() == ["kept", "kept", "unsynced"]
    assert boot_id(sandbox) == boot


def test_time_stands_still_for_programs_while_paused(sandbox):
    """The counter counts each 100 ms of guest time: the 30 of these in the pause are not caught up on."""
    counter = Counter(sandbox)
    before = counter.read()
    sandbox.pause()
    time.sleep(3)  # the passing of time is what is tested
    sandbox.resume()
    assert counter.read().count - before.count < 25


def test_100_cycles_keep_64_mib_intact(sandbox):
    sandbox.sh("mkdir /tmp/ram; mount -t tmpfs -o size=80m ram /tmp/ram; "
               "dd if=/dev/urandom of=/tmp/ram/data bs=1M count=64 2>/dev/null")  # fmt: skip
    pieces = sandbox.sh("for i in $(seq 0 63); do dd if=/tmp/ram/data bs=1M skip=$i count=1 2>/dev/null | md5sum; done")
    sums = [line.split()[0] for line in pieces.splitlines()]
    assert len(set(sums)) == 64
    whole = sandbox.sh("sha256sum /tmp/ram/data")
    counter = Counter(sandbox)
    last = counter.read()
    random.seed(100)
    templates = {template["snapshot"] for template in sandbox.daemon.json("template", "ls")}
    for cycle in range(100):
        sandbox.pause()
        sandbox.resume()
        piece = random.randrange(64)
        found = sandbox.sh(f"dd if=/tmp/ram/data bs=1M skip={piece} count=1 2>/dev/null | md5sum").split()[0]
        assert found == sums[piece], f"MiB {piece} changed in cycle {cycle}"
        now = counter.read()
        assert now.nonce == last.nonce and now.count >= last.count
        last = now
    assert sandbox.sh("sha256sum /tmp/ram/data") == whole
    # What the earlier pauses made goes in the background, down to the one that the memory comes from.
    kept = templates | {sandbox.info()["snapshot"]}
    wait_until(lambda: sandbox.daemon.snapshots() == kept, "earlier snapshots removed")


def test_only_pages_that_differ_are_written(sandbox):
    sandbox.sh("mkdir /tmp/ram; mount -t tmpfs -o size=80m ram /tmp/ram; "
               "dd if=/dev/urandom of=/tmp/ram/data bs=1M count=32 2>/dev/null")  # fmt: skip
    mib = 1 << 20
    dirtied = sandbox.pause()["capture"]
    assert 32 * mib <= dirtied["bytes_written"] <= 48 * mib
    sandbox.resume()
    idle = sandbox.pause()["capture"]
    assert 0 < idle["bytes_written"] <= idle["bytes_private"] < 4 * mib
    sandbox.resume()
    # The same bytes again: the pages become private, and none of them differs.
    sandbox.sh("cat /tmp/ram/data | dd of=/tmp/ram/data bs=1M conv=notrunc iflag=fullblock 2>/dev/null")
    same = sandbox.pause()["capture"]
    assert same["bytes_private"] >= 32 * mib
    assert same["bytes_written"] < 8 * mib


def written_bytes(pid):
    """Of pages of files that the process made dirty, whether they are on a disk yet or not."""
    (line,) = (line for line in Path(f"/proc/{pid}/io").read_text().splitlines() if line.startswith("write_bytes:"))
    return int(line.split()[1])


def test_resuming_writes_nothing(sandbox):
    """Pages come from the snapshot and stay as clean as they were there, whether the guest wants them or not."""
    daemon = sandbox.daemon
    kept = 160
    sandbox.sh(f"mkdir /tmp/ram; mount -t tmpfs -o size={kept + 10}m ram /tmp/ram; "
               f"dd if=/dev/urandom of=/tmp/ram/data bs=1M count={kept} 2>/dev/null; sync")  # fmt: skip
    digest = sandbox.sh("md5sum /tmp/ram/data")
    snapshot = sandbox.pause()["snapshot"]
    servers = [daemon.process.pid, daemon.image_server()]
    before = sum(map(written_bytes, servers))
    vmm = sandbox.resume()["vmm_pid"]
    resumed = written_bytes(vmm), sum(map(written_bytes, servers)) - before
    assert sandbox.sh("md5sum /tmp/ram/data") == digest
    wait_until(lambda: daemon.json("snapshot", "inspect", snapshot)["working_set"], "the working set is recorded")
    used = written_bytes(vmm), sum(map(written_bytes, servers)) - before
    assert sum(used) < 1 << 20, f"written by VMM and servers: {resumed} by the resume, {used} after all memory was read"


def test_the_clock_is_right_after_a_pause(sandbox):
    sandbox.pause()
    time.sleep(3)  # so long the guest's clock stood still
    sandbox.resume()
    offset = clock_offset(sandbox)
    assert abs(offset) < 0.1, f"the guest's clock is {offset:+.3f} s off"


def test_a_paused_sandbox_is_only_files(sandbox):
    info = sandbox.pause()
    assert sandbox.state() == "paused"
    snapshot = sandbox.daemon.json("snapshot", "info", info["snapshot"])
    assert snapshot["sandbox"] == sandbox.id and snapshot["in_use"]
    assert snapshot["memory_bytes"] > 0 and snapshot["state_bytes"] > 0
    sandbox.exec("true").expect_failure("paused", "resume")
    sandbox.daemon.cli("pause", sandbox.id).expect_failure("paused")
    sandbox.daemon.cli("stats", sandbox.id).expect_failure("paused")
    sandbox.daemon.cli("snapshot", "rm", info["snapshot"]).expect_failure("paused")
    sandbox.resume()
    assert sandbox.sh("echo alive") == "alive"


def test_resuming_a_running_one_leaves_it_alone(sandbox):
    before = sandbox.info()
    again = sandbox.resume()
    assert again["was_running"] and again["vmm_pid"] == before["vmm_pid"]


def test_a_paused_one_can_be_killed(sandbox):
    sandbox.pause()
    sandbox.kill()
    sandbox.daemon.cli("info", sandbox.id).expect_failure("there is no")


def test_several_at_once(daemon):
    sandboxes = [daemon.run() for _ in range(4)]
    counters = [Counter(sandbox) for sandbox in sandboxes]
    nonces = [counter.read().nonce for counter in counters]
    ids = [sandbox.id for sandbox in sandboxes]
    for verb in ("pause", "resume"):
        processes = [daemon.popen(verb, identity) for identity in ids]
        assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert [counter.read().nonce for counter in counters] == nonces


def test_open_files_and_a_deleted_one_go_on(sandbox):
    """What only the guest's kernel knows: an open descriptor of a file without a name, a full pipe, a lock."""
    sandbox.sh(
        """
        cat > /root/program <<'END'
exec 5>/root/unlinked 6</root/unlinked
rm /root/unlinked
echo written before >&5
mkfifo /root/go
read line < /root/go
echo written after >&5
cat <&6 > /root/result
END
        setsid sh /root/program >/dev/null 2>&1 &
        until [ -p /root/go ]; do usleep 20000; done
    """
    )
    sandbox.pause()
    sandbox.resume()
    sandbox.sh("echo > /root/go; until [ -s /root/result ]; do usleep 20000; done; usleep 100000")
    assert sandbox.sh("cat /root/result").splitlines() == ["written before", "written after"]


@pytest.mark.parametrize("ahead", [0, 2])
def test_load_and_continue_can_be_two_steps(new_daemon, ahead):
    daemon = new_daemon(wrapper=["env", "DORMOUSE_RESTORE_RESUME_ON_LOAD=0"], vmm_ahead=ahead)
    if ahead:
        wait_until(lambda: len(daemon.standbys()) == ahead, "VMMs kept ready")
    sandbox = daemon.run()
    arguments = Path(f"/proc/{sandbox.info()['vmm_pid']}/cmdline").read_bytes().split(b"\0")
    assert b"-S" in arguments
    counter = Counter(sandbox)
    before = counter.read()
    sandbox.pause()
    sandbox.resume()
    counter.wait_beyond(before)
