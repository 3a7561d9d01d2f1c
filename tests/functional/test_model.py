"""Random calls, valid and invalid, against a plain model of docs/lifecycle.md; compared after each.

Several sandboxes at the same time, each with a thread of its own that knows what must come of its calls. Then two
calls at once on one sandbox: what comes of them must be what comes of one after the other, in one order or the other.
`make soak` (DORMOUSE_SOAK=1) makes many more calls.
"""

import itertools
import random
import threading

import pytest

from guest import soak
from harness import Sandbox

THREADS = 3


class Model:
    """A sandbox as the documentation has it: no processes, no files."""

    def __init__(self):
        self.state = "running"
        self.memory = True  # whether its snapshot, when it is paused, has memory
        self.boots = 0  # a new boot id for each
        self.in_memory = 0  # what the guest wrote last, to RAM …
        self.on_disk = 0  # … and to its disk, flushed
        self.timeout = 0

    def copy(self):
        other = Model()
        other.__dict__.update(self.__dict__)
        return other

    def key(self):
        return (self.state, self.memory, self.boots)

    # Each returns the status that the call must be answered with.

    def pause(self):
        return self.paused(True)

    def pause_disk(self):
        return self.paused(False)

    def paused(self, memory):
        if self.state != "running":
            return 404 if self.state == "gone" else 409
        self.state, self.memory = "paused", memory
        return 200

    def resume(self, reboot=False):
        if self.state == "gone":
            return 404
        if self.state == "paused":
            self.state = "running"
            if reboot or not self.memory:
                self.boots += 1
                self.in_memory = 0
        return 200

    def reboot(self):
        return self.resume(True)

    def fork(self):
        return 404 if self.state == "gone" else 201

    def kill(self):
        if self.state == "gone":
            return 404
        self.state = "gone"
        return 204

    def set_timeout(self):
        return {"running": 204, "paused": 409, "gone": 404}[self.state]

    def info(self):
        return 404 if self.state == "gone" else 200

    def stats(self):
        return {"running": 200, "paused": 409, "gone": 404}[self.state]

    def nonsense(self):
        """A body that is wrong is refused, whatever the state."""
        return {400, 404} if self.state == "gone" else 400

    def write(self, value):
        self.in_memory = self.on_disk = value


CALLS = {
    "pause": ("POST", "/pause", {}),
    "pause_disk": ("POST", "/pause", {"disk_only": True}),
    "resume": ("POST", "/resume", {}),
    "reboot": ("POST", "/resume", {"reboot": True}),
    "fork": ("POST", "/fork", {"count": 1, "timeout_s": 0}),
    "kill": ("DELETE", "", None),
    "set_timeout": ("POST", "/timeout", {"timeout_s": 3600}),
    "info": ("GET", "", None),
    "stats": ("GET", "/stats", None),
}
NONSENSE = [
    ("POST", "/pause", {"disk_only": 1}),
    ("POST", "/resume", {"reboot": "yes"}),
    ("POST", "/resume", {"timeout_s": -1}),
    ("POST", "/fork", {"count": 0}),
    ("POST", "/fork", {"count": 101}),
    ("POST", "/timeout", {"timeout_s": 1 << 40}),
    ("POST", "/resume", {"rebooot": True}),
]
WEIGHTS = {"pause": 6, "pause_disk": 2, "resume": 8, "reboot": 1, "fork": 3, "kill": 1, "set_timeout": 1, "info": 1,
           "stats": 2, "nonsense": 2, "write": 4}  # fmt: skip


class Actor:
    """Drives one sandbox and its model; a child of a fork is looked at, and sometimes takes the place of its parent."""

    def __init__(self, daemon, key, seed):
        self.daemon = daemon
        self.key = key
        self.randomness = random.Random(seed)
        self.trace = []
        self.value = 0
        self.begin(daemon.run(), Model())

    def begin(self, sandbox, model):
        self.sandbox, self.model, self.boot_ids = sandbox, model, {}
        if model.state == "running":
            self.boot_ids[model.boots] = self.look()[0]

    def call(self, method, path, body):
        return self.daemon.http(method, f"/dormouse/v1/sandboxes/{self.sandbox.id}{path}", body, key=self.key)

    def look(self):
        """Boot id, what is in memory, what is on the disk."""
        found = self.sandbox.sh("cat /proc/sys/kernel/random/boot_id; cat /dev/shm/value 2>/dev/null || echo 0; "
                                "cat /root/value 2>/dev/null || echo 0").split()  # fmt: skip
        return found[0], int(found[1]), int(found[2])

    def step(self):
        name = self.randomness.choices(list(WEIGHTS), WEIGHTS.values())[0]
        self.trace.append(name)
        if name == "write":
            return self.write()
        method, path, body = CALLS.get(name) or self.randomness.choice(NONSENSE)
        expected = getattr(self.model, name)()
        status, answer = self.call(method, path, body)
        allowed = expected if isinstance(expected, set) else {expected}
        assert status in allowed, (self.sandbox, self.trace, status, answer, expected)
        if status >= 400:
            assert answer["code"] == status and answer["message"], answer
        self.compare()
        if name == "fork" and status == 201:
            self.child(Sandbox(self.daemon, answer["results"][0]["sandbox"]["id"]))
        if self.model.state == "gone" and self.randomness.random() < 0.5:
            self.trace = []
            self.begin(self.daemon.run(), Model())

    def write(self):
        if self.model.state == "running":
            self.value += 1
            self.model.write(self.value)
            self.sandbox.sh(f"echo {self.value} > /dev/shm/value; echo {self.value} > /root/value; sync")

    def compare(self):
        """What the daemon says, and what is in the guest, is what the model says."""
        model, where = self.model, (self.sandbox, self.trace)
        status, info = self.call("GET", "", None)
        if model.state == "gone":
            assert status == 404, where
            return
        assert status == 200 and info["state"] == model.state, (where, info)
        assert (info["vmm_pid"] is not None) == (model.state == "running"), (where, info)
        if model.state == "running":
            boot, in_memory, on_disk = self.look()
            known = self.boot_ids.setdefault(model.boots, boot)
            assert boot == known, (where, "a reboot by accident")
            assert len(set(self.boot_ids.values())) == len(self.boot_ids), (where, "no reboot where one was asked for")
            assert (in_memory, on_disk) == (model.in_memory, model.on_disk), where
        elif model.state == "paused":
            snapshot = self.daemon.http("GET", f"/dormouse/v1/snapshots/{info['snapshot']}", key=self.key)[1]
            assert (snapshot["state_bytes"] > 0) == model.memory, (where, snapshot)

    def child(self, child):
        """A copy runs, with its parent's memory, or booted if there was none."""
        model = self.model.copy()
        if model.state == "paused":
            model.resume()
        parent, self.sandbox, before = self.sandbox, child, (self.model, dict(self.boot_ids))
        if model.boots not in self.boot_ids or (self.model.state == "paused" and not self.model.memory):
            self.boot_ids.pop(model.boots, None)
        self.model = model
        self.compare()
        if self.randomness.random() < 0.3:  # its own boots, if it has any, aren't its parent's
            parent.kill()
            return
        child.kill()
        self.sandbox, (self.model, self.boot_ids) = parent, before


def test_random_calls_on_several_sandboxes_at_once(daemon):
    key = daemon.api_key()
    failures = []

    def work(number):
        try:
            actor = Actor(daemon, key, f"model-{number}")
            for _ in range(soak(15, 400)):
                actor.step()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    daemon.expect_consistent()
    daemon.cli("store", "verify", seconds=120).expect(0)


# ---- two calls at once ----

PAIRS = ["pause", "pause_disk", "resume", "kill", "fork", "set_timeout"]


def outcomes(start, pair):
    """What two calls may be answered with, and the state then: in either order; and a resume, or a kill, that comes
    while the other is under way cancels it, if that is a pause, or ends what it needs, if it is anything else."""
    found = set()
    for order in (pair, pair[::-1]):
        model = start.copy()
        statuses = {name: getattr(model, name)() for name in order}
        if pair[0] == pair[1]:  # the same twice: answers in either order
            model = start.copy()
            statuses = sorted(getattr(model, name)() for name in pair)
            found.add((*statuses, model.state))
            continue
        found.add((statuses[pair[0]], statuses[pair[1]], model.state))
    for pause in {"pause", "pause_disk"} & set(pair):
        if "resume" in pair and start.state == "running":
            answers = {pause: 409, "resume": 200}
            found.add((answers[pair[0]], answers[pair[1]], "running"))
    if "kill" in pair and pair[0] != pair[1] and start.state != "gone":
        other = pair[0] if pair[1] == "kill" else pair[1]
        for ended in (404, 409, 500):
            answers = {other: ended, "kill": 204}
            found.add((answers[pair[0]], answers[pair[1]], "gone"))
    if pair == ("kill", "kill") and start.state != "gone":
        found.add((204, 204, "gone"))  # both waited for it to go
    return found


@pytest.mark.parametrize("state", ["running", "paused"])
def test_two_calls_at_once_are_as_if_one_came_after_the_other(daemon, state):
    key = daemon.api_key()
    randomness = random.Random(state)
    sandbox = None
    pairs = list(itertools.combinations_with_replacement(PAIRS, 2)) * soak(1, 20)
    for pair in pairs:
        if sandbox is None:
            sandbox = daemon.run()
        model = Model()
        if state == "paused":
            model.pause()
            if sandbox.state() == "running":
                sandbox.pause()
        answers = [None, None]
        delay = threading.Event()

        def call(number, pair=pair, answers=answers, delay=delay, wait=randomness.uniform(0, 0.03)):
            method, path, body = CALLS[pair[number]]
            if number == 1:
                delay.wait(wait)
            answers[number] = daemon.http(method, f"/dormouse/v1/sandboxes/{sandbox.id}{path}", body, key=key)

        threads = [threading.Thread(target=call, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = [status for status, _ in answers]
        if pair[0] == pair[1]:
            statuses.sort()
        infos = daemon.list()
        found = infos[sandbox.id]["state"] if sandbox.id in infos else "gone"
        assert (*statuses, found) in outcomes(model, pair), (pair, answers, found, outcomes(model, pair))
        for child in set(infos) - {sandbox.id}:
            Sandbox(daemon, child).kill()
        daemon.expect_consistent()
        if found == "gone":
            sandbox = None
        elif found == "paused" and state == "running":
            sandbox.resume()
