"""More than one virtual CPU, snapshots included."""

import time

import pytest

from harness import wait_until


@pytest.fixture
def two_cpus(daemon):
    daemon.build("two", "--recipe", "tiny", "--memory", "256M", "--cpus", "2")
    yield daemon.run(template="two")
    daemon.cli("template", "rm", "two").expect(0)


# Works on CPU N for ever and counts in memory; the file only shows the count.
WORKER = """
i=0
while :; do
    i=$((i + 1))
    [ $((i % 500)) = 0 ] && echo $i > /dev/shm/new-$1 && mv /dev/shm/new-$1 /dev/shm/worker-$1
done
"""


def counts(sandbox):
    return [int(count) for count in sandbox.sh("cat /dev/shm/worker-0 /dev/shm/worker-1").split()]


def expect_both_working(sandbox):
    before = counts(sandbox)
    wait_until(lambda: all(now > then for now, then in zip(counts(sandbox), before)), "both CPUs working on")


def test_two_cpus_under_load_pause_resume_and_fork(two_cpus):
    sandbox = two_cpus
    assert sandbox.sh("nproc") == "2"
    sandbox.sh(f"cat > /run/worker.sh <<'END'\n{WORKER}END\n"
               "for cpu in 0 1; do setsid taskset $((cpu + 1)) sh /run/worker.sh $cpu >/dev/null 2>&1 & done\n"
               "until [ -e /dev/shm/worker-0 ] && [ -e /dev/shm/worker-1 ]; do usleep 10000; done")  # fmt: skip
    expect_both_working(sandbox)
    for _ in range(5):
        before = counts(sandbox)
        sandbox.pause()
        sandbox.resume()
        after = counts(sandbox)
        assert all(now >= then for now, then in zip(after, before))
        expect_both_working(sandbox)
    (child,) = sandbox.fork()
    expect_both_working(child)
    expect_both_working(sandbox)
    assert child.sh("nproc") == "2"


def test_other_cpus_or_memory_than_the_templates_boot(daemon):
    """What the snapshot can't give is booted from its rootfs; what comes then is as snapshotable."""
    began = time.monotonic()
    sandbox = daemon.run("--cpus", "2", "--memory", "192M")
    info = sandbox.info()
    assert (info["cpus"], info["memory_mib"]) == (2, 192)
    assert sandbox.sh("nproc") == "2"
    assert int(sandbox.sh("awk '/MemTotal/ {print $2}' /proc/meminfo")) < 192 * 1024
    sandbox.sh("echo kept > /dev/shm/file")
    sandbox.pause()
    sandbox.resume()
    assert sandbox.sh("cat /dev/shm/file; nproc").split() == ["kept", "2"]
    assert time.monotonic() - began < 90
