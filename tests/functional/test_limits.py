"""What sandboxes may take of the host."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from guest import Counter
from harness import BUILD, HIERARCHY, run_process, wait_until

MIB = 1 << 20

CONTROLLERS = (HIERARCHY / "cgroup.controllers").read_text().split() if HIERARCHY else []


@pytest.fixture
def limited(new_daemon):
    def make(*options, **others):
        return new_daemon(options=options, **others)

    return make


def expect_busy(daemon, reason, *words, method="POST", path="/dormouse/v1/sandboxes", body=None):
    """A start is refused with 503 and that reason, by both APIs' rules, and leaves nothing."""
    before = daemon.list()
    status, answer = daemon.http(method, path, {"template": "tiny"} if body is None else body)
    assert status == 503 and answer["code"] == 503, answer
    assert answer["reason"] == reason and answer["hint"], answer
    for word in words:
        assert word in answer["message"], answer
    assert daemon.list().keys() == before.keys()


def test_how_many_run_at_once(limited):
    daemon = limited("--max-sandboxes=2")
    first, second = daemon.run(), daemon.run()
    expect_busy(daemon, "too_many_sandboxes", "2")
    daemon.cli("run", "-t", "tiny").expect_failure("2 sandboxes run", "--max-sandboxes")
    # Paused ones don't count; what is resumed does.
    state = Counter(first).read()
    first.pause()
    third = daemon.run()
    expect_busy(daemon, "too_many_sandboxes", path=f"/dormouse/v1/sandboxes/{first.id}/resume", body={})
    assert first.state() == "paused"
    _, results = daemon.http("POST", f"/sandboxes/{second.id}/fork", {"count": 2})
    assert [result["error"]["code"] for result in results] == [503, 503]
    third.kill()
    first.resume()
    Counter(first, start=False).wait_beyond(state)
    # The next daemon counts those that it takes over.
    daemon.kill()
    daemon.start()
    expect_busy(daemon, "too_many_sandboxes")
    second.kill()
    daemon.run()


def test_memory_that_guests_may_come_to_need(limited):
    daemon = limited("--memory-limit=1000M", "--memory-overcommit=100")
    first = daemon.run()  # 256 MiB, and what its VMM needs
    second = daemon.run()
    state = Counter(second).read()
    expect_busy(daemon, "out_of_memory", "1000 MiB")
    expect_busy(daemon, "out_of_memory", path="/v2/sandboxes", body={"templateID": "tiny"})
    daemon.cli("run", "-t", "tiny", "--memory", "100G").expect_failure("no memory")
    second.pause()
    third = daemon.run()
    expect_busy(daemon, "out_of_memory", path=f"/dormouse/v1/sandboxes/{second.id}/resume", body={})
    assert second.state() == "paused"
    third.kill()
    second.resume()
    Counter(second, start=False).wait_beyond(state)
    assert first.state() == "running"


def test_memory_may_be_promised_more_than_once(limited):
    daemon = limited("--memory-limit=600M", "--memory-overcommit=250")
    sandboxes = [daemon.run() for _ in range(3)]  # 3 × (256 + 193) MiB are within 1500
    expect_busy(daemon, "out_of_memory", "250 %")
    # As they use it, less is left, whatever was promised.
    sandboxes[2].kill()
    for sandbox in sandboxes[:2]:
        sandbox.sh("mount -t tmpfs -o size=200m ram /mnt; dd if=/dev/urandom of=/mnt/data bs=1M count=130 2>/dev/null")
    expect_busy(daemon, "out_of_memory", "in use")


def test_the_host_is_not_overfilled_by_default(daemon):
    total = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    for mib in (total, 4 * total):
        result = daemon.cli("run", "-t", "tiny", "--memory", f"{mib}M")
        result.expect_failure("no memory|memory must be")


def test_starts_wait_for_each_other(limited):
    daemon = limited("--max-starts=1", vmm_ahead=0)
    processes = [daemon.popen("run", "-t", "tiny", stdout=subprocess.PIPE) for _ in range(6)]
    ids = [process.communicate(timeout=90)[0].decode().strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 6
    assert len(set(ids)) == 6 and set(ids) == set(daemon.list())


def test_one_that_waits_can_be_killed(limited):
    daemon = limited("--max-starts=1", vmm_ahead=0)
    # The only place is taken by a start that can't end: its VMM is stopped as soon as it is there.
    blocker = daemon.popen("run", "-t", "tiny", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = wait_until(lambda: next(iter(daemon.vmm_pids()), None), "the VMM", 20)
    os.kill(pid, 19)
    blocked = daemon.vmm_pids()[pid]
    waiter = daemon.popen("run", "-t", "tiny", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if blocker.poll() is not None:
        pytest.skip("it was started before it could be stopped")
    waiting = wait_until(lambda: daemon.list().keys() - {blocked}, "the one that waits").pop()
    assert daemon.list()[waiting]["state"] == "creating"
    began = time.monotonic()
    daemon.cli("kill", waiting).expect(0)
    assert time.monotonic() - began < 10
    assert waiter.wait(20) == 1
    daemon.cli("kill", blocked).expect(0)
    blocker.wait(20)
    daemon.run().exec("true").expect(0)


def test_what_a_guest_may_write_to_its_disk(limited):
    daemon = limited("--disk-limit=24M")
    greedy, modest = daemon.run(), daemon.run()
    assert greedy.exec(
        "sh", "-c", "dd if=/dev/urandom of=/root/data bs=1M count=48 conv=fsync", options=["-u", "root"]
    ).status != 0
    assert greedy.stats()["overlay_bytes"] <= 26 * MIB
    assert greedy.state() == "running" and greedy.sh("echo up") == "up"
    modest.sh("dd if=/dev/urandom of=/root/data bs=1M count=8 conv=fsync 2>/dev/null")
    # It counts from the last snapshot on.
    modest.pause()
    modest.resume()
    modest.sh("dd if=/dev/urandom of=/root/more bs=1M count=8 conv=fsync 2>/dev/null")
    greedy.kill()


def cgroups(daemon):
    directory = HIERARCHY / "dormouse" / daemon.instance()
    return {entry.name: entry for entry in directory.iterdir() if entry.is_dir()} if directory.exists() else {}


@pytest.mark.skipif(HIERARCHY is None, reason="no cgroup version 2 on this host")
def test_each_vmm_has_a_cgroup(new_daemon):
    daemon = new_daemon()
    restored = daemon.run()
    booted = daemon.run("--memory", "128M", "--cpus", "2")
    child = restored.fork()[0]
    running = {sandbox.id for sandbox in (restored, booted, child)}
    assert cgroups(daemon).keys() == running
    for sandbox in (restored, booted, child):
        pid = sandbox.info()["vmm_pid"]
        assert f"/dormouse/{daemon.instance()}/{sandbox.id}\n" in Path(f"/proc/{pid}/cgroup").read_text()
        group = cgroups(daemon)[sandbox.id]
        for controller, file in (("memory", "memory.max"), ("pids", "pids.max"), ("cpu", "cpu.weight")):
            if controller in CONTROLLERS:
                assert int((group / file).read_text()) > 0
    if not {"memory", "pids", "cpu"} <= set(CONTROLLERS):
        assert daemon.log().count("VMMs run without these bounds") == 1
    restored.pause()
    booted.kill()
    assert cgroups(daemon).keys() == {child.id}
    restored.resume()
    assert cgroups(daemon).keys() == {child.id, restored.id}
    # What a crash leaves is swept; those that run keep theirs.
    daemon.kill()
    left = HIERARCHY / "dormouse" / daemon.instance() / "left"
    left.mkdir()
    daemon.start()
    assert cgroups(daemon).keys() == {child.id, restored.id}
    daemon.cli("kill", "--all").expect(0)
    assert cgroups(daemon) == {}
    assert daemon.stop() == 0
    assert not (HIERARCHY / "dormouse" / (daemon.data / "instance").read_text().strip()).exists()


def test_the_doctor_says_what_is_bounded(daemon):
    checks = {check["name"]: check for check in daemon.cli("doctor", "--json").json()}
    complete = {"memory", "pids", "cpu"} <= set(CONTROLLERS)
    assert (checks["cgroup"]["status"] == "ok") == complete
    if not complete:
        assert "VMMs run without" in checks["cgroup"]["detail"]


@pytest.mark.parametrize(
    "option", ["--max-sandboxes=-1", "--max-starts=x", "--memory-limit=0", "--memory-overcommit=99", "--disk-limit=1Q"]
)
def test_wrong_limits_are_refused(daemon, option):
    program = daemon.arguments()[0]
    result = run_process([program, option])
    result.expect(2)
    assert option.split("=")[0] in result.error


def test_bounds_hold_where_the_kernel_has_them(base, daemon):
    """The unit tests of control groups, in a guest, whose kernel has all controllers for itself."""
    program = BUILD / "tests/unit/test_limits"
    if not program.exists():
        pytest.skip("this build tree has no unit tests")
    sandbox = daemon.run(template=base)
    sandbox.sh("mkdir /root/test")
    listing = run_process(["ldd", program]).expect(0).out
    libraries = [line.split("=>")[1].split()[0] for line in listing.splitlines() if "=>" in line]
    for path in (program, *libraries):
        daemon.cli("cp", "-u", "root", path, f"{sandbox.id}:/root/test/").expect(0)
    sandbox.sh("grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts || mount -t cgroup2 cgroup /sys/fs/cgroup")
    result = sandbox.exec("/root/test/test_limits", options=["-u", "root", "-e", "LD_LIBRARY_PATH=/root/test"])
    result.expect(0)
    assert "SKIPPED" not in result.out + result.error
    assert "test_memory_is_bounded" in result.out + result.error
