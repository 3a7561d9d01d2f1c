"""What is in memory and on disk stays what it was, whatever is done to a sandbox and to those it came from.

`make test` runs a few cycles of each, `make soak` (DORMOUSE_SOAK=1) all of them.
"""

import random
import subprocess

import pytest

from guest import Counter, boot_id, soak
from harness import Sandbox, wait_until

MIB = 1 << 20
SLICE = 16  # MiB

# Another process that keeps writing: to memory, over and over, and to the disk.
CHURN = """
echo $$ > /run/churn.pid
mkdir -p /churn
mount -t tmpfs -o size=16m churn /churn
while :; do
    head -c 2097152 /dev/urandom > /churn/new
    md5sum < /churn/new > /churn/sum.new
    mv /churn/new /churn/data
    mv /churn/sum.new /churn/sum
    cp /churn/sum /root/churn
    usleep 50000
done
"""


class Filled:
    """A guest whose memory is filled, to six tenths, with random bytes; the host knows the digests of some slices."""

    def __init__(self, daemon, memory_mib, randomness, known=None):
        self.sandbox = daemon.run("--memory", f"{memory_mib}M")
        self.randomness = randomness
        slices = memory_mib * 6 // 10 // SLICE
        size = slices * SLICE
        self.sandbox.sh(f"mkdir /ram && mount -t tmpfs -o size={size + 1}m ram /ram && "
                        f"dd if=/dev/urandom of=/ram/data bs=1M count={size} 2>/dev/null", seconds=300)  # fmt: skip
        known = randomness.sample(range(slices), min(slices, known or slices))
        self.sums = dict(zip(known, self.digests(self.sandbox, known), strict=True))
        assert len(set(self.sums.values())) == len(known), "it isn't random"
        self.sandbox.sh(f"cat > /run/churn.sh <<'END'\n{CHURN}END\nsetsid sh /run/churn.sh >/dev/null 2>&1 &\n"
                        "until [ -s /root/churn ]; do usleep 20000; done")  # fmt: skip
        self.counter = Counter(self.sandbox)
        self.first = self.counter.read()
        self.boot = boot_id(self.sandbox)

    @staticmethod
    def digests(sandbox, numbers):
        one = f"dd if=/ram/data bs=1M skip=$((i * {SLICE})) count={SLICE} 2>/dev/null | md5sum"
        return sandbox.sh(f"for i in {' '.join(map(str, numbers))}; do {one}; done", seconds=300).split()[::2]

    def check(self, sandbox, whole=False):
        """A random slice of it, or all that are known."""
        numbers = list(self.sums) if whole else [self.randomness.choice(list(self.sums))]
        for number, found in zip(numbers, self.digests(sandbox, numbers), strict=True):
            assert found == self.sums[number], f"slice {number} of {sandbox} has changed"
        now = self.counter.of(sandbox).read()
        assert (now.nonce, now.pid) == (self.first.nonce, self.first.pid), "that is another memory"
        assert boot_id(sandbox) == self.boot

    def check_churn(self, sandbox):
        """What was being written at the time is of one piece, too: the writer stops, in the child alone."""
        sandbox.sh("kill -STOP $(cat /run/churn.pid)")
        sums = sandbox.sh("md5sum < /churn/data; cat /churn/sum /churn/sum.new 2>/dev/null || true").split()[::2]
        assert sums[0] in sums[1:], "what was being written is torn"


def pause_and_resume(filled, whole):
    filled.sandbox.pause()
    filled.sandbox.resume()
    filled.check(filled.sandbox, whole)


def fork_children(filled, whole):
    """Of a running sandbox, and of a paused one."""
    if filled.randomness.random() < 0.5:
        filled.sandbox.pause()
        children = filled.sandbox.fork(2)
        filled.sandbox.resume()
    else:
        children = filled.sandbox.fork(2)
    for child in children:
        filled.check(child, whole)
        filled.check_churn(child)
        child.kill()
    filled.check(filled.sandbox)


def three_generations(filled, whole):
    """Each goes before the next is looked at."""
    child = filled.sandbox
    for generation in range(3):
        (grandchild,) = child.fork()
        if child is not filled.sandbox:
            child.kill()
        child = grandchild
        filled.check(child, whole and generation == 2)
    filled.check_churn(child)
    child.kill()
    filled.check(filled.sandbox)


def go_on_as_a_child(filled, whole):
    """From here on it is a copy that is paused, resumed and forked; the one it came from is gone."""
    (child,) = filled.sandbox.fork()
    filled.sandbox.kill()
    filled.sandbox = child
    filled.check(child, whole)


def checkpoint_and_go_on(filled, whole):
    """What is kept is the same as what goes on."""
    daemon = filled.sandbox.daemon
    snapshot = daemon.json("checkpoint", filled.sandbox.id)["id"]
    try:
        filled.check(filled.sandbox, whole)
        copy = daemon.run(template=snapshot)
        filled.check(copy, whole)
        filled.check_churn(copy)
        copy.kill()
    finally:
        daemon.cli("snapshot", "rm", snapshot).expect(0)


CYCLES = [pause_and_resume, fork_children, checkpoint_and_go_on, three_generations, go_on_as_a_child]


@pytest.mark.parametrize("memory_mib", [512, 1024])
def test_memory_full_of_random_bytes(daemon, memory_mib):
    """Filled once; each cycle looks at a random slice, every tenth at all of it."""
    filled = Filled(daemon, memory_mib, random.Random(memory_mib), known=soak(6, None))
    cycles = soak(len(CYCLES) if memory_mib == 512 else 1, 100)
    for cycle in range(cycles):
        # Round robin first, so that a short run has each kind.
        operation = CYCLES[cycle] if cycle < len(CYCLES) else filled.randomness.choice(CYCLES)
        operation(filled, cycle % 10 == 9)
    filled.check(filled.sandbox, whole=True)
    filled.check_churn(filled.sandbox)


def test_files_of_every_earlier_cycle(sandbox):
    """Cycle by cycle a file in memory and one on the disk, half of them never synced."""
    boot = boot_id(sandbox)
    for cycle in range(soak(10, 100)):
        sync = "sync" if cycle % 2 else "true"
        sandbox.sh(f"for at in /dev/shm /root; do head -c 65536 /dev/urandom > $at/{cycle}; "
                   f"(cd $at && md5sum {cycle} >> sums); done; {sync}")  # fmt: skip
        sandbox.pause()
        sandbox.resume()
        # What the guest has cached must not hide what the disk lacks.
        drop = "echo 3 > /proc/sys/vm/drop_caches;" if cycle % 3 == 0 else ""
        lines = sandbox.sh(f"{drop} for at in /dev/shm /root; do cd $at && md5sum -c sums; done").splitlines()
        assert lines == [f"{earlier}: OK" for earlier in range(cycle + 1)] * 2
    assert boot_id(sandbox) == boot


def test_two_from_one_snapshot_at_the_same_time(sandbox):
    daemon = sandbox.daemon
    counter = Counter(sandbox)
    sandbox.sh("for at in /dev/shm /root; do head -c 8388608 /dev/urandom > $at/data; "
               "(cd $at && md5sum data > sum); done")  # fmt: skip
    before = counter.read()
    snapshot = sandbox.pause()["snapshot"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    clients = [daemon.popen("run", "-t", snapshot, **options) for _ in range(2)]
    owner = daemon.popen("resume", sandbox.id, **options)
    outputs = [client.communicate(timeout=60) for client in clients]
    assert [client.returncode for client in clients] == [0, 0], outputs
    assert owner.communicate(timeout=60) and owner.returncode == 0
    all_three = [sandbox, *(Sandbox(daemon, out.decode().strip()) for out, _ in outputs)]
    daemon.expect_consistent()
    for one in all_three:
        assert counter.of(one).read().nonce == before.nonce
    for number, one in enumerate(all_three):
        # Each over what it has in common with the others.
        one.sh(f"for at in /dev/shm /root; do echo {number} > $at/own; "
               f"dd if=/dev/urandom of=$at/data bs=1M seek={number} count=1 conv=notrunc 2>/dev/null; "
               f"(cd $at && md5sum data > sum-{number}); done; sync")  # fmt: skip
    for number, one in enumerate(all_three):
        one.sh("echo 3 > /proc/sys/vm/drop_caches")
        assert one.sh("cat /dev/shm/own /root/own").split() == [str(number)] * 2
        assert one.sh(f"for at in /dev/shm /root; do cd $at; md5sum -c sum-{number}; done").split() == ["data:", "OK"] * 2


def test_forks_to_depth_20(sandbox):
    """Each adds to memory and disk, and its parent goes."""
    counter = Counter(sandbox)
    before = counter.read()
    sandbox.sh("head -c 4194304 /dev/urandom > /dev/shm/data; md5sum /dev/shm/data > /root/sum; "
               "echo 0 > /dev/shm/line; echo 0 > /root/line")  # fmt: skip
    last = sandbox
    for depth in range(1, 21):
        (child,) = last.fork()
        assert child.info()["parent"] == last.id
        last.kill()
        child.sh(f"echo {depth} >> /dev/shm/line; echo {depth} >> /root/line")
        last = child
    for _ in range(2):
        wanted = [str(depth) for depth in range(21)]
        assert last.sh("cat /dev/shm/line").split() == wanted
        assert last.sh("cat /root/line").split() == wanted
        assert last.sh("md5sum -c /root/sum") == "/dev/shm/data: OK"
        assert counter.of(last).read().nonce == before.nonce
        last.pause()
        last.resume()


def test_children_are_independent_of_what_becomes_of_their_parent(sandbox):
    daemon = sandbox.daemon
    sandbox.sh("for at in /dev/shm /root; do head -c 4194304 /dev/urandom > $at/data; md5sum $at/data; done > /root/sum; "
               "sync")  # fmt: skip
    counter = Counter(sandbox)
    sandbox.pause()
    children = sandbox.fork(2)
    sandbox.resume()
    children += sandbox.fork()
    states = [counter.of(child).read() for child in children]

    def check(what):
        for number, child in enumerate(children):
            # From the images, not from what the guest has cached of its disk.
            sums = child.sh("echo 3 > /proc/sys/vm/drop_caches; md5sum -c /root/sum", seconds=60)
            assert sums.count("OK") == 2, f"child {number} after the parent was {what}: {sums}"
            states[number] = counter.of(child).wait_beyond(states[number])

    check("resumed")
    for _ in range(soak(1, 3)):
        sandbox.sh("for at in /dev/shm /root; do dd if=/dev/urandom of=$at/data bs=1M count=3 conv=notrunc 2>/dev/null; "
                   "done; sync")  # fmt: skip
        sandbox.pause()
        check("changed and paused again")
        sandbox.resume()
    snapshot = sandbox.pause()["snapshot"]
    daemon.cli("store", "compact", seconds=120).expect(0)
    check("compacted")
    children[0].pause()  # their siblings are parents, too
    children[0].resume()
    (grandchild,) = children[1].fork()
    children[1].kill()
    children[1] = grandchild
    states[1] = counter.of(grandchild).read()
    sandbox.kill()
    wait_until(lambda: snapshot not in daemon.snapshots(), "the parent's snapshot is gone")
    daemon.cli("store", "gc").expect(0)
    check("deleted")
    for child in children:
        child.pause()
    for child in children:
        child.resume()
    check("gone for good")
    daemon.cli("store", "verify", seconds=120).expect(0)
