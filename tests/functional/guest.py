"""Things that run in guests of the tiny template, and what they tell."""

import os
import re
import time
from collections import namedtuple

State = namedtuple("State", "count nonce pid")

# Count and nonce are variables of a shell, so they are in RAM and nowhere else; the file only shows them.
COUNTER = """
nonce=$(head -c 16 /dev/urandom | md5sum | cut -c1-32)
count=0
while :; do
    count=$((count + 1))
    echo "$count $nonce $$" > /dev/shm/counter
    usleep 100000
done
"""


class Counter:
    """A program that counts in RAM. After a fork, `of` gives the child's copy of it."""

    def __init__(self, sandbox, start=True):
        self.sandbox = sandbox
        if start:
            sandbox.sh(f"cat > /run/counter.sh <<'END'\n{COUNTER}END\n"
                       "setsid sh /run/counter.sh >/dev/null 2>&1 &\n"
                       "until [ -s /dev/shm/counter ]; do usleep 10000; done")  # fmt: skip

    def of(self, sandbox):
        return Counter(sandbox, start=False)

    def read(self):
        # Empty for the moment between the shell's opening and writing it.
        count, nonce, pid = self.sandbox.sh("until grep . /dev/shm/counter; do :; done").split()
        return State(int(count), nonce, int(pid))

    def wait_beyond(self, state, seconds=20):
        """Until it has counted on; returns the new state."""
        deadline = time.monotonic() + seconds
        while (now := self.read()).count <= state.count:
            assert time.monotonic() < deadline, f"it stopped counting at {now}"
        assert (now.nonce, now.pid) == (state.nonce, state.pid)
        return now


def boot_id(sandbox):
    return sandbox.sh("cat /proc/sys/kernel/random/boot_id")


def clock_offset(sandbox, rounds=20):
    """Guest's clock minus host's, in seconds, as NTP finds it: from the exchange with the shortest round trip."""
    best = None
    with sandbox.shell() as shell:
        for _ in range(rounds):
            before = time.time()
            text = shell.run("adjtimex")
            after = time.time()
            seconds = int(re.search(r"time\.tv_sec:\s*(\d+)", text).group(1))
            fraction = int(re.search(r"time\.tv_usec:\s*(\d+)", text).group(1))
            unit = 1e-9 if "STA_NANO" in text or fraction >= 1000000 else 1e-6
            trip = after - before
            if best is None or trip < best[0]:
                best = (trip, seconds + fraction * unit - (before + after) / 2)
    assert best[0] < 0.1, f"the shortest of {rounds} round trips took {best[0]:.3f} s: nothing can be said"
    return best[1]


def soak(few, many):
    """How often: `few` in `make test`, `many` in `make soak`."""
    return many if os.environ.get("DORMOUSE_SOAK") else few
