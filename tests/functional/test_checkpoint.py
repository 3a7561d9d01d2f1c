"""Checkpoints: snapshots with names, of sandboxes that go on running."""

import concurrent.futures
import http.client
import json
import subprocess
import time

import pytest

from guest import Counter, boot_id
from harness import wait_until

MIB = 1 << 20


@pytest.fixture(autouse=True)
def none_is_left(daemon):
    """What a test has kept goes with it."""
    yield
    for snapshot in daemon.json("snapshot", "ls"):
        if snapshot["checkpoint"]:
            daemon.cli("kill", "--all").expect(0)
            daemon.cli("snapshot", "rm", snapshot["id"]).expect(0)


def checkpoint(sandbox, *name):
    return sandbox.daemon.json("checkpoint", sandbox.id, *name)


def exists(daemon, snapshot):
    return snapshot in {one["id"] for one in daemon.json("snapshot", "ls")}


def names(daemon):
    return sorted(name for one in daemon.json("snapshot", "ls") for name in one["names"])


def fill(sandbox, mebibytes, path="/tmp/ram/data"):
    sandbox.sh(
        f"mountpoint -q /tmp/ram || {{ mkdir -p /tmp/ram; mount -t tmpfs -o size=80% ram /tmp/ram; }};"
        f" dd if=/dev/urandom of={path} bs=1M count={mebibytes} conv=notrunc 2>/dev/null"
    )


def digest(sandbox, path="/tmp/ram/data"):
    return sandbox.sh(f"sha256sum {path} | cut -c1-64")


def capture(sandbox):
    return sandbox.info()["capture"]


# ---- what it is ----


def test_the_sandbox_goes_on_and_others_start_from_it(sandbox):
    daemon = sandbox.daemon
    counter = Counter(sandbox)
    sandbox.sh("echo then > /root/file; echo then > /dev/shm/file")
    with sandbox.shell() as shell:
        shell.run("x=kept")
        pid = sandbox.info()["vmm_pid"]
        before = counter.read()
        made = checkpoint(sandbox, "work")
        assert made["names"] == ["work:default"] and made["checkpoint"] and made["sandbox"] == sandbox.id
        assert shell.run("echo $x") == "kept", "its connections stay"
    assert sandbox.info()["vmm_pid"] == pid and sandbox.state() == "running"
    counter.wait_beyond(before)
    sandbox.sh("echo now > /root/file; echo now > /dev/shm/file")
    sandbox.kill()
    for template in ("work", "work:default", made["id"]):
        copy = daemon.run(template=template)
        assert counter.of(copy).read().nonce == before.nonce, "its memory is that of the checkpoint"
        assert copy.sh("cat /root/file /dev/shm/file").split() == ["then", "then"]
        assert copy.info()["template"] == "tiny"
        copy.kill()


def test_one_without_a_name_is_kept_by_its_id(sandbox):
    daemon = sandbox.daemon
    snapshot = daemon.cli("checkpoint", sandbox.id).expect(0).out.strip()
    info = daemon.json("snapshot", "info", snapshot)
    assert info["names"] == [] and info["checkpoint"] and info["in_use"]
    sandbox.kill()
    daemon.run(template=snapshot).exec("true").expect(0)
    daemon.cli("snapshot", "rm", snapshot).expect(0)
    assert not exists(daemon, snapshot)


def test_a_paused_one_gives_its_snapshot_a_name(sandbox):
    daemon = sandbox.daemon
    sandbox.sh("echo kept > /root/file")
    snapshot = sandbox.pause()["snapshot"]
    assert checkpoint(sandbox, "one")["id"] == snapshot
    assert sorted(checkpoint(sandbox, "two:x")["names"]) == ["one:default", "two:x"]
    assert sandbox.state() == "paused"
    # The sandbox goes on; what it was stays as long as it has a name.
    sandbox.resume()
    sandbox.sh("echo other > /root/file")
    sandbox.pause()
    daemon.cli("snapshot", "rm", "one").expect(0)
    assert daemon.run(template="two:x").sh("cat /root/file") == "kept"
    daemon.cli("kill", "--all").expect(0)
    assert exists(daemon, snapshot)
    daemon.cli("snapshot", "rm", "two:x").expect(0)
    wait_until(lambda: not exists(daemon, snapshot), "the removal of the snapshot that has no name any more")


def test_a_name_that_is_taken_moves(sandbox):
    daemon = sandbox.daemon
    sandbox.sh("echo 1 > /dev/shm/file")
    first = checkpoint(sandbox, "work:v1")["id"]
    sandbox.sh("echo 2 > /dev/shm/file")
    second = checkpoint(sandbox, "work:v1")["id"]
    assert names(daemon) == ["work:v1"]
    wait_until(lambda: not exists(daemon, first), "the removal of the checkpoint that lost its name")
    assert daemon.json("snapshot", "info", "work:v1")["id"] == second
    assert daemon.run(template="work:v1").sh("cat /dev/shm/file") == "2"
    daemon.cli("run", "-t", "work").expect_failure("work")  # that is work:default


def test_removal(sandbox):
    daemon = sandbox.daemon
    snapshot = checkpoint(sandbox, "work")["id"]
    daemon.cli("snapshot", "rm", "other").expect_failure("no snapshot")
    copy = daemon.run(template="work")
    sandbox.kill()
    daemon.cli("snapshot", "rm", "work").expect(0)
    daemon.cli("run", "-t", "work").expect_failure("work")
    copy.sh("echo 3 > /proc/sys/vm/drop_caches; ls /root")
    copy.kill()
    wait_until(lambda: not exists(daemon, snapshot), "the removal of the snapshot with its last user")


def test_removal_by_id_takes_the_names_along_but_not_a_paused_sandbox(sandbox):
    daemon = sandbox.daemon
    paused = sandbox.pause()["snapshot"]
    checkpoint(sandbox, "work")
    daemon.cli("snapshot", "rm", paused).expect_failure("paused sandbox")
    assert names(daemon) == ["work:default"]
    sandbox.kill()
    daemon.cli("snapshot", "rm", paused).expect(0)
    assert names(daemon) == [] and not exists(daemon, paused)


@pytest.mark.parametrize("name", ["", "Work", "-work", "a b", "a:", ":b", "a:b:c", "a/b", "a" * 64, "ä", "tiny"])
def test_bad_names_are_refused(sandbox, name):
    status, body = sandbox.daemon.http("POST", f"/dormouse/v1/sandboxes/{sandbox.id}/checkpoint", {"name": name})
    assert status == (409 if name == "tiny" else 400), body
    assert not [one for one in sandbox.daemon.json("snapshot", "ls") if one["checkpoint"]]
    assert sandbox.sh("echo on") == "on"


def test_names_survive_the_daemon(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run("--env", "COLOUR=red")
    sandbox.sh("echo 1 > /dev/shm/file")
    first = checkpoint(sandbox, "work")["id"]
    daemon.kill()
    daemon.start()
    assert names(daemon) == ["work:default"]
    # What was known of its memory is lost, and nothing with it.
    sandbox.sh("echo 2 > /dev/shm/file")
    checkpoint(sandbox, "work:2")
    sandbox.sh("echo 3 > /dev/shm/file")
    checkpoint(sandbox, "work:3")
    sandbox.kill()
    daemon.kill()
    daemon.start()
    for template, content in (("work", "1"), ("work:2", "2"), ("work:3", "3")):
        copy = daemon.run(template=template)
        assert copy.sh("cat /dev/shm/file; echo $COLOUR").split() == [content, "red"]
        copy.kill()
    daemon.cli("snapshot", "rm", first).expect(0)
    assert daemon.cli("store", "verify").expect(0)


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1, 0.25])
def test_a_daemon_that_dies_meanwhile_leaves_all_or_nothing(new_daemon, delay):
    daemon = new_daemon()
    sandbox = daemon.run()
    counter = Counter(sandbox)
    fill(sandbox, 24)
    before, wanted = counter.read(), digest(sandbox)
    with daemon.popen("checkpoint", sandbox.id, "work", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        time.sleep(delay)  # whatever it is at by then: each moment is right
        daemon.kill()
        done = client.wait(timeout=30) == 0
    daemon.start()
    counter.wait_beyond(before)
    kept = names(daemon)
    assert kept == ["work:default"] if done else kept in ([], ["work:default"])
    assert len(daemon.json("snapshot", "ls")) == 1 + len(kept), "the template's and no other"
    checkpoint(sandbox, "work")
    assert digest(daemon.run(template="work")) == wanted
    daemon.cli("store", "verify").expect(0)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
def test_a_kill_meanwhile_wins(sandbox, delay):
    daemon = sandbox.daemon
    fill(sandbox, 24)
    with daemon.popen("checkpoint", sandbox.id, "work", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        time.sleep(delay)
        sandbox.kill()
        done = client.wait(timeout=30) == 0
    assert names(daemon) == (["work:default"] if done else [])


# ---- configuration ----


def test_configuration_is_kept(daemon):
    sandbox = daemon.run("--env", "A=1", "--env", "B=2", "--memory", "192", "--cpus", "2")
    checkpoint(sandbox, "work")
    sandbox.kill()
    copy = daemon.run("--env", "B=3", template="work")
    info = copy.info()
    assert (info["memory_mib"], info["cpus"], info["env"]) == (192, 2, {"A": "1", "B": "3"})
    assert copy.sh("echo $A$B; nproc").split() == ["13", "2"]


@pytest.mark.parametrize("way", ["rebooted", "disk-only", "from a disk-only snapshot"])
def test_of_one_that_was_booted(daemon, way):
    sandbox = daemon.run("--env", "A=1", "--memory", "192", "--cpus", "2")
    sandbox.sh("echo kept > /root/file; sync")
    if way == "rebooted":
        sandbox.pause()
        sandbox.resume("--reboot")
    else:
        daemon.cli("pause", "--disk-only", sandbox.id).expect(0)
        if way == "from a disk-only snapshot":
            checkpoint(sandbox, "disk")
            sandbox.kill()
            sandbox = daemon.run(template="disk")
            assert sandbox.info()["memory_mib"] == 192
        else:
            sandbox.resume()
    counter = Counter(sandbox)
    boot, before = boot_id(sandbox), counter.read()
    for number in range(2):
        checkpoint(sandbox, f"work:{number}")
        sandbox.sh(f"echo {number} > /dev/shm/number")
    copies = [daemon.run(template=f"work:{number}") for number in range(2)]
    for copy in copies:
        assert counter.of(copy).read().nonce == before.nonce and boot_id(copy) == boot
        info = copy.info()
        assert (info["memory_mib"], info["cpus"], info["env"]) == (192, 2, {"A": "1"})
        assert copy.sh("cat /root/file; echo $A; nproc").split() == ["kept", "1", "2"]
    assert copies[1].sh("cat /dev/shm/number") == "0"
    sandbox.pause()
    sandbox.resume()
    assert counter.wait_beyond(before) and sandbox.sh("cat /dev/shm/number") == "1"


# ---- what it costs ----


def test_repeated_ones_cost_what_changed_since_the_last(sandbox):
    """Not since the start: 48 MiB are stored once, though they are private to the VMM each time."""
    fill(sandbox, 48)
    checkpoint(sandbox, "a")
    assert capture(sandbox)["bytes_written"] >= 48 * MIB
    for number in range(3):
        fill(sandbox, 2, "/tmp/ram/more")
        made = checkpoint(sandbox, f"b:{number}")
        figures = capture(sandbox)
        assert figures["bytes_private"] >= 48 * MIB, "all of it was looked at"
        assert 2 * MIB <= figures["bytes_written"] < 12 * MIB, figures
        assert made["own_bytes"] < 12 * MIB, made
    # The pause that ends it, too; and a fork is a checkpoint that nobody keeps.
    (child,) = sandbox.fork()
    assert capture(sandbox)["bytes_written"] < 12 * MIB
    wanted = digest(sandbox)
    sandbox.pause()
    assert capture(sandbox)["bytes_written"] < 12 * MIB
    sandbox.resume()
    assert {digest(one) for one in (sandbox, child)} == {wanted}
    assert digest(sandbox.daemon.run(template="b:1")) == wanted


def test_the_disk_costs_what_changed_since_the_last(sandbox):
    sandbox.sh("dd if=/dev/urandom of=/root/a bs=1M count=16 2>/dev/null; sync")
    checkpoint(sandbox, "a")
    made = checkpoint(sandbox, "b")
    assert made["own_bytes"] < 8 * MIB, made
    wanted = sandbox.sh("sha256sum /root/a")
    sandbox.kill()
    copy = sandbox.daemon.run(template="b")
    copy.sh("echo 3 > /proc/sys/vm/drop_caches")
    assert copy.sh("sha256sum /root/a") == wanted


def test_many_build_on_compacted_ones(sandbox):
    """Layers stay bounded, also of the one to come, and each checkpoint has what was there when it was taken."""
    daemon = sandbox.daemon
    expected = {}

    def layers(number):
        return len(daemon.json("snapshot", "inspect", f"step:{number}")["layers"])

    for number in range(18):
        fill(sandbox, 1, f"/tmp/ram/{number % 5}")
        sandbox.sh(f"echo {number} > /root/{number}; sync")
        assert checkpoint(sandbox, f"step:{number}")["layers"] <= 16 + 2
        wait_until(lambda number=number: layers(number) <= 16, "the compaction")
        if number % 6 == 5:
            expected[number] = sandbox.sh("cat /tmp/ram/* | sha256sum")
    for number in {*range(12)} - {*expected}:
        daemon.cli("snapshot", "rm", f"step:{number}").expect(0)
    daemon.cli("store", "gc").expect(0)
    for number, content in expected.items():
        copy = daemon.run(template=f"step:{number}")
        assert copy.sh("cat /tmp/ram/* | sha256sum") == content
        assert copy.sh("ls /root | wc -l") == str(number + 1)
        copy.kill()


# ---- what it holds is right ----


def test_memory_is_whole_while_others_write(sandbox):
    """A program goes on writing; what stands still is the same in each checkpoint, and what is written is consistent:
    two files that are always written one after the other differ by one at most."""
    fill(sandbox, 60)
    wanted = digest(sandbox)
    sandbox.sh("cat > /run/w.sh <<'END'\necho $$ > /run/w.pid; n=0\nwhile :; do n=$((n+1)); echo $n > /dev/shm/x; mv /dev/shm/x /dev/shm/a;"
               " echo $n > /dev/shm/x; mv /dev/shm/x /dev/shm/b; dd if=/dev/urandom of=/tmp/ram/noise bs=64k count=32"
               " 2>/dev/null; done\nEND\nsetsid sh /run/w.sh >/dev/null 2>&1 &"
               " until [ -s /dev/shm/b ]; do usleep 10000; done")  # fmt: skip
    for number in range(4):
        checkpoint(sandbox, f"w:{number}")
    for number in range(4):
        copy = sandbox.daemon.run(template=f"w:{number}")
        copy.sh("kill -STOP $(cat /run/w.pid)")
        assert digest(copy) == wanted
        a, b = (int(text) for text in copy.sh("cat /dev/shm/a /dev/shm/b").split())
        assert 0 <= a - b <= 1
        copy.kill()
    assert digest(sandbox) == wanted


def test_contents_that_come_back(sandbox):
    """A page that is zeroed, and one that has again what it had two checkpoints ago."""
    fill(sandbox, 4)
    sandbox.sh("cp /tmp/ram/data /tmp/ram/old")
    seen = {}

    def take(name):
        checkpoint(sandbox, f"c:{name}")
        seen[name] = digest(sandbox)

    take("first")
    sandbox.sh("dd if=/dev/zero of=/tmp/ram/data bs=1M count=4 conv=notrunc 2>/dev/null")
    take("zero")
    sandbox.sh("dd if=/tmp/ram/old of=/tmp/ram/data bs=1M count=4 conv=notrunc 2>/dev/null")
    take("again")
    sandbox.sh("printf x | dd of=/tmp/ram/data bs=1 seek=5000 conv=notrunc 2>/dev/null")
    take("byte")
    assert seen["first"] == seen["again"] and len(set(seen.values())) == 3
    sandbox.kill()
    for name, wanted in seen.items():
        copy = sandbox.daemon.run(template=f"c:{name}")
        assert digest(copy) == wanted, name
        copy.kill()


def test_several_at_once(daemon):
    """Of different sandboxes by one name: the last one has it; the others leave nothing."""
    sandboxes = [daemon.run() for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda one: checkpoint(one, "one"), sandboxes))
    assert names(daemon) == ["one:default"]
    kept = daemon.json("snapshot", "info", "one")["id"]
    for one in made:
        if one["id"] != kept:
            wait_until(lambda one=one: not exists(daemon, one["id"]), "the removal of the others")


# ---- E2B's shapes ----


def test_e2b_pages(sandbox):
    daemon = sandbox.daemon
    made = []
    for name in ("a", "b:x", None):
        body = {} if name is None else {"name": name}
        status, answer = daemon.http("POST", f"/sandboxes/{sandbox.id}/snapshots", body)
        assert status == 201, answer
        made.append(answer)
    assert [one["snapshotID"] for one in made[:2]] == ["a:default", "b:x"]
    assert [one["names"] for one in made] == [["a:default"], ["b:x"], []]
    other = daemon.run()
    daemon.http("POST", f"/sandboxes/{other.id}/snapshots", {"name": "a:other"})
    other.pause()  # what it leaves is no snapshot of E2B's

    def page(query):
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        connection.request("GET", f"/snapshots?{query}", headers={"X-API-KEY": daemon.api_key()})
        response = connection.getresponse()
        return json.loads(response.read()), response.getheader("X-Next-Token")

    seen, token = [], ""
    while token is not None:
        items, token = page(f"sandboxID={sandbox.id}&limit=1" + (f"&nextToken={token}" if token else ""))
        assert len(items) == 1
        seen += items
    assert seen == made[::-1], "the newest first"
    assert [one["snapshotID"] for one in page("name=a")[0]] == ["a:other", "a:default"]
    assert [one["snapshotID"] for one in page("name=a:default")[0]] == ["a:default"]
    assert page("name=b:y") == ([], None)
    assert len(page("")[0]) == 4
    assert daemon.http("GET", "/snapshots?limit=0")[0] == 400
    assert daemon.http("GET", "/snapshots?nextToken=x")[0] == 400
    assert daemon.http("DELETE", "/templates/a%3Adefault")[0] == 204
    assert daemon.http("DELETE", "/templates/a%3Adefault")[0] == 404
    assert daemon.http("DELETE", f"/templates/{other.info()['snapshot']}")[0] == 404
    assert daemon.http("DELETE", f"/templates/{made[2]['snapshotID']}")[0] == 204
    assert names(daemon) == ["a:other", "b:x"]
    assert daemon.http("POST", f"/sandboxes/{sandbox.id}/snapshots", {"name": "No"})[0] == 400
    assert daemon.http("POST", "/sandboxes/nobody/snapshots", {})[0] == 404
