"""VMMs are started ahead of their guests. Who finds none starts one himself; none is ever left over or shared."""

import os
import signal
from pathlib import Path

from guest import Counter
from harness import wait_until


def status(pid, field):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.split()[1:]
    raise AssertionError(f"no {field} in the status of {pid}")


def cpus(pid):
    """0 when it has just ended."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return 0
    return int(arguments[arguments.index("-smp") + 1]) if "-smp" in arguments else 0


def test_a_resume_takes_one_that_waits_and_another_takes_its_place(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run()
    counter = Counter(sandbox)
    before = counter.read()
    sandbox.pause()
    daemon.expect_filled()
    waiting = daemon.standbys()
    sandbox.resume()
    pid = sandbox.info()["vmm_pid"]
    assert pid in waiting
    assert daemon.vmm_pids() == {pid: sandbox.id}
    counter.wait_beyond(before)
    daemon.expect_consistent()
    wait_until(lambda: len(daemon.standbys()) == daemon.vmm_ahead, "another standby")
    assert pid not in daemon.standbys()
    # It is captured, and survives the daemon, as any other.
    daemon.kill()
    daemon.start()
    counter.wait_beyond(counter.read())
    sandbox.pause()
    sandbox.resume()
    counter.wait_beyond(before)
    sandbox.kill()
    daemon.expect_clean()


def test_a_vmm_shares_no_memory(sandbox):
    """With what it has open for writing it could change others' memory, otherwise."""
    with open(f"/proc/{sandbox.info()['vmm_pid']}/maps") as file:
        mappings = [line.split() for line in file]
    assert any(fields[1] == "rw-p" and fields[-1].endswith("/vm/memory") for fields in mappings)
    shared = [fields for fields in mappings if fields[1].endswith("s")]
    assert all(fields[-1].startswith("anon_inode:kvm-vcpu") for fields in shared), shared


def test_those_that_wait_are_as_confined_as_any(new_daemon):
    daemon = new_daemon()
    daemon.expect_filled()
    first, second = daemon.standbys()
    assert status(first, "Uid") != status(second, "Uid")
    for pid in (first, second):
        assert set(status(pid, "Uid")) & {"0"} == set()
        assert status(pid, "CapEff") == ["0" * 16] and status(pid, "NoNewPrivs") == ["1"]
        wait_until(lambda pid=pid: status(pid, "Seccomp_filters") == ["2"], "the jail's filter and QEMU's")
        files = set(os.listdir(f"/proc/{pid}/root/vm"))
        assert files == {"qmp.sock", "control.sock", "console.log", "memory", "rootfs", "vmm.log"}
    for namespace in ("net", "mnt", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{first}/ns/{namespace}") != os.readlink(f"/proc/{second}/ns/{namespace}")


def test_a_storm_beyond_what_waits(new_daemon):
    daemon = new_daemon()
    parent = daemon.run()
    counter = Counter(parent)
    nonce = counter.read().nonce
    for _ in range(3):
        children = parent.fork(6)
        assert {counter.of(child).read().nonce for child in children} == {nonce}
        assert len(daemon.vmm_pids()) == 7
        daemon.expect_consistent()
        for child in children:
            child.kill()
    parent.kill()
    daemon.expect_clean()


def test_those_that_died_harm_nobody(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run()
    sandbox.pause()
    daemon.expect_filled()
    for pid in daemon.standbys():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not daemon.standbys(), "their end")
    sandbox.resume()
    assert sandbox.sh("echo on") == "on"
    sandbox.kill()
    daemon.expect_filled()
    daemon.expect_clean()


def test_nothing_is_left_of_them(new_daemon):
    daemon = new_daemon()
    daemon.expect_filled()
    old = set(daemon.standbys())
    daemon.kill()
    assert set(daemon.standbys()) == old
    daemon.start()
    wait_until(lambda: not old & set(daemon.all_vmms()), "the end of those that nobody knows")
    daemon.expect_filled()
    daemon.expect_clean()
    assert daemon.stop() == 0
    assert not daemon.all_vmms() and not daemon.slots() and not os.listdir(daemon.data / "vms")


def test_the_shape_asked_for_last_is_kept(new_daemon):
    daemon = new_daemon()
    daemon.expect_filled()
    assert [cpus(pid) for pid in daemon.standbys()] == [1, 1]
    two = daemon.run("--cpus", "2")
    two.pause()
    two.resume()
    wait_until(lambda: 2 in [cpus(pid) for pid in daemon.standbys()], "a standby with two CPUs")
    two.pause()
    daemon.expect_filled()
    waiting = [pid for pid in daemon.standbys() if cpus(pid) == 2]
    two.resume()
    assert two.info()["vmm_pid"] in waiting and two.sh("nproc") == "2"
    two.kill()
    daemon.expect_clean()


def test_none_are_kept_unless_wanted(new_daemon):
    daemon = new_daemon(vmm_ahead=0)
    sandbox = daemon.run()
    sandbox.pause()
    sandbox.resume()
    assert sandbox.sh("echo on") == "on"
    assert not daemon.standbys()
    sandbox.kill()
    daemon.expect_clean()
