"""Forks: copies that share what is the same and nothing else."""

import time

from guest import Counter, boot_id, clock_offset

MIB = 1 << 20


def hosts(sandboxes):
    return [sandbox.sh("hostname") for sandbox in sandboxes]


def test_eight_forks_share_nothing_they_write(sandbox):
    counter = Counter(sandbox)
    sandbox.sh("echo common > /dev/shm/file; echo common > /root/file")
    before = counter.read()
    boot = boot_id(sandbox)
    children = sandbox.fork(8)
    assert len({child.id for child in children} | {sandbox.id}) == 9
    for child in children:
        info = child.info()
        assert info["state"] == "running" and info["parent"] == sandbox.id
        assert info["template"] == "tiny"
        now = counter.of(child).read()
        assert now.nonce == before.nonce and now.count >= before.count, "the child goes on from the parent's memory"
        assert boot_id(child) == boot
    for number, child in enumerate(children):
        child.sh(f"echo {number} > /dev/shm/file; echo {number} > /root/file; echo {number} > /root/own-{number}; sync")
    for number, child in enumerate(children):
        assert child.sh("cat /dev/shm/file /root/file").split() == [str(number), str(number)]
        assert child.sh("ls /root | grep own") == f"own-{number}"
    assert sandbox.sh("cat /dev/shm/file /root/file").split() == ["common", "common"]
    assert sandbox.sh("ls /root | grep -c own || true") == "0"
    # The parent's going touches nobody, in memory, on disk or in what they could still read from it.
    sandbox.kill()
    for number, child in enumerate(children):
        counter.of(child).wait_beyond(counter.of(child).read())
        child.sh("echo 3 > /proc/sys/vm/drop_caches")
        assert child.sh("cat /dev/shm/file /root/file").split() == [str(number), str(number)]


def test_a_paused_parent_stays_paused(sandbox):
    counter = Counter(sandbox)
    before = counter.read()
    sandbox.pause()
    children = sandbox.fork(2)
    assert sandbox.state() == "paused"
    for child in children:
        assert counter.of(child).read().nonce == before.nonce
        child.sh("echo child > /root/file")
    sandbox.resume()
    assert counter.read().nonce == before.nonce
    assert sandbox.exec("test", "-e", "/root/file", options=["-u", "root"]).status == 1


def test_a_fork_of_a_fork(sandbox):
    sandbox.sh("echo one > /root/file; echo one > /dev/shm/file")
    (child,) = sandbox.fork()
    child.sh("echo two >> /root/file; echo two >> /dev/shm/file")
    (grandchild,) = child.fork()
    grandchild.sh("echo three >> /root/file; echo three >> /dev/shm/file")
    sandbox.kill()
    child.kill()
    grandchild.pause()
    grandchild.resume()
    assert grandchild.sh("cat /root/file").split() == ["one", "two", "three"]
    assert grandchild.sh("cat /dev/shm/file").split() == ["one", "two", "three"]
    (last,) = grandchild.fork()
    assert last.sh("cat /root/file /dev/shm/file").split() == ["one", "two", "three"] * 2


def test_forks_may_be_paused_resumed_and_forked_on_their_own(sandbox):
    counter = Counter(sandbox)
    first, second = sandbox.fork(2)
    first.pause()
    sandbox.pause()
    counter.of(second).wait_beyond(counter.of(second).read())
    first.resume()
    counter.of(first).wait_beyond(counter.of(first).read())
    assert sandbox.state() == "paused"


def test_random_numbers_differ(sandbox):
    children = sandbox.fork(4)
    numbers = [one.sh("head -c 32 /dev/urandom | md5sum") for one in [sandbox, *children]]
    assert len(set(numbers)) == 5


def test_random_numbers_differ_because_the_generator_is_reseeded(sandbox):
    """Twins have the generator's state in common, and Linux reseeds it by itself only after half of its uptime: so
    within that time, what two twins read differs by our reseeding alone."""
    uptime = "cut -d. -f1 /proc/uptime"
    age = int(
        sandbox.sh(f"until [ $({uptime}) -ge 12 ]; do usleep 100000; done; head -c 1 /dev/urandom >/dev/null; {uptime}")
    )
    sandbox.pause()
    read = "head -c 32 /dev/urandom | md5sum"
    twins = sandbox.fork(2)
    numbers = [twin.sh(read) for twin in twins]
    assert int(twins[-1].sh(uptime)) < age + age // 2, "too slow to tell anything"
    assert numbers[0] != numbers[1]


def test_clocks_agree_with_the_hosts(sandbox):
    sandbox.pause()
    time.sleep(3)  # so long the snapshot's clock stands still
    for child in sandbox.fork(2):
        offset = clock_offset(child)
        assert abs(offset) < 0.1, f"the fork's clock is {offset:+.3f} s off"


def test_identity_is_each_ones_own(daemon):
    sandbox = daemon.run("--env", "COLOUR=red")
    children = sandbox.fork(2)
    assert hosts([sandbox, *children]) == [one.id[:12] for one in [sandbox, *children]]
    for child in children:
        assert child.sh("echo $COLOUR") == "red"
        assert child.sh("echo $E2B_SANDBOX_ID") == child.id
    tokens = [one.info()["access_token"] for one in [sandbox, *children]]
    assert len(set(tokens)) == 3


def test_an_idle_fork_has_little_memory_of_its_own(sandbox):
    """The strict figure is make bench's; this catches a copy of everything."""
    children = sandbox.fork(4)
    private = [child.stats()["private_bytes"] for child in children]
    assert max(private) <= 3 * MIB, private
    written = children[0]
    written.sh(
        "mkdir /tmp/ram; mount -t tmpfs ram /tmp/ram; dd if=/dev/urandom of=/tmp/ram/data bs=1M count=16 2>/dev/null"
    )
    assert 16 * MIB <= written.stats()["private_bytes"] <= 32 * MIB
    assert children[1].stats()["private_bytes"] <= 6 * MIB


def test_forking_leaves_the_parent_running_with_its_connections(sandbox):
    with sandbox.shell() as shell:
        shell.run("x=kept")
        pid = sandbox.info()["vmm_pid"]
        sandbox.fork(2)
        assert shell.run("echo $x") == "kept"
        assert sandbox.info()["vmm_pid"] == pid


def test_counts_out_of_range(sandbox):
    daemon = sandbox.daemon
    daemon.cli("fork", "-n", "101", sandbox.id).expect_failure(status=2)
    for count in (0, 101, -1, 1.5, "2"):
        status, body = daemon.http("POST", f"/sandboxes/{sandbox.id}/fork", {"count": count})
        assert status == 400 and body["code"] == 400, body
    assert list(daemon.list()) == [sandbox.id]


def test_a_snapshot_starts_new_sandboxes(sandbox):
    """What a pause left can be run from by its id, also while its owner is paused."""
    counter = Counter(sandbox)
    nonce = counter.read().nonce
    snapshot = sandbox.pause()["snapshot"]
    copy = sandbox.daemon.run(template=snapshot)
    assert counter.of(copy).read().nonce == nonce
    sandbox.kill()
    assert counter.of(copy).read().nonce == nonce
