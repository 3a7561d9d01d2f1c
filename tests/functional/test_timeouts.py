"""Time to live."""

import contextlib
import json
import sqlite3
import time

from datetime import datetime

from guest import Counter
from harness import wait_until


def gone(sandbox):
    return sandbox.id not in sandbox.daemon.list()


def expires_in(info):
    return datetime.fromisoformat(info["expires_at"]).timestamp() - time.time()


def test_it_is_killed_when_its_time_is_over_and_not_before(daemon):
    began = time.monotonic()
    sandbox = daemon.run("--timeout", "3")
    other = daemon.run()
    assert 1 < expires_in(sandbox.info()) <= 3
    wait_until(lambda: gone(sandbox), "the end of its time")
    assert 2.9 < time.monotonic() - began < 10
    assert other.state() == "running"


def test_it_is_paused_if_so_asked(daemon):
    sandbox = daemon.run("--timeout", "2", "--on-timeout", "pause")
    state = Counter(sandbox).read()
    wait_until(lambda: sandbox.state() == "paused", "the end of its time")
    assert sandbox.info()["expires_at"] is None
    resumed = sandbox.resume("--timeout", "100")
    assert 90 < expires_in(resumed) <= 100
    assert Counter(sandbox, start=False).read().nonce == state.nonce


def test_a_resume_of_a_running_one_only_extends(daemon):
    sandbox = daemon.run("--timeout", "100")
    assert 150 < expires_in(sandbox.resume("--timeout", "200")) <= 200
    assert 150 < expires_in(sandbox.resume("--timeout", "50")) <= 200


def test_a_new_timeout_counts_from_now(daemon):
    sandbox = daemon.run("--timeout", "100")
    status, _ = daemon.http("POST", f"/sandboxes/{sandbox.id}/timeout", {"timeout": 1})
    assert status == 204
    wait_until(lambda: gone(sandbox), "the end of its time")


def test_forks_have_their_own(daemon):
    sandbox = daemon.run("--timeout", "60")
    children = daemon.json("fork", "-n", "2", "--timeout", "2", sandbox.id)["results"]
    ids = {child["sandbox"]["id"] for child in children}
    wait_until(lambda: not ids & set(daemon.list()), "the end of the children's time")
    assert sandbox.state() == "running"


def test_it_survives_a_restart_of_the_daemon(new_daemon):
    daemon = new_daemon()
    began = time.monotonic()
    meanwhile = daemon.run("--timeout", "2")
    later = daemon.run("--timeout", "5")
    paused = daemon.run("--timeout", "2", "--on-timeout", "pause")
    never = daemon.run()
    daemon.kill()
    time.sleep(2.5)  # two of the timeouts pass while no daemon is there
    assert len(daemon.vmm_pids()) == 4
    daemon.start()
    wait_until(lambda: gone(meanwhile), "the end of the time that passed meanwhile", seconds=5)
    wait_until(lambda: paused.state() == "paused", "the pause", seconds=5)
    assert later.state() == "running" or time.monotonic() - began > 5
    wait_until(lambda: gone(later), "the end of its time")
    assert time.monotonic() - began > 4.9
    assert never.state() == "running"


def edit_record(daemon, sandbox, **values):
    """Changes what the registry says of a sandbox while no daemon runs."""
    with contextlib.closing(sqlite3.connect(daemon.data / "registry.db")) as registry, registry:
        (text,) = registry.execute("SELECT document FROM object WHERE id = ?", [sandbox.id]).fetchone()
        document = {**json.loads(text), **values}
        registry.execute("UPDATE object SET document = ? WHERE id = ?", [json.dumps(document), sandbox.id])


def test_a_clock_that_jumped_while_no_daemon_was_there_does_not_fire_it(new_daemon):
    daemon = new_daemon()
    long = daemon.run("--timeout", "1000")
    short = daemon.run("--timeout", "4")
    never = daemon.run()
    began = time.monotonic()
    daemon.kill()
    # As if the wall clock had been set: a day forward, as the long one's record says, and a day back.
    edit_record(daemon, long, expires_ns=time.time_ns() - 86400 * 10**9)
    edit_record(daemon, short, expires_ns=time.time_ns() + 86400 * 10**9)
    daemon.start()
    assert 900 < expires_in(long.info()) <= 1000
    wait_until(lambda: gone(short), "the end of its time", seconds=15)
    assert time.monotonic() - began > 2
    assert long.state() == never.state() == "running"
    assert never.info()["expires_at"] is None


def test_after_a_boot_of_the_host_the_wall_clock_counts(new_daemon):
    daemon = new_daemon()
    over = daemon.run("--timeout", "1000")
    later = daemon.run("--timeout", "1000")
    daemon.kill()
    edit_record(daemon, over, boot_id="another", expires_ns=time.time_ns() - 10**9)
    edit_record(daemon, later, boot_id="another", deadline_ns=1, expires_ns=time.time_ns() + 500 * 10**9)
    daemon.start()
    wait_until(lambda: gone(over), "the end of its time")
    assert 400 < expires_in(later.info()) <= 500


def test_absurd_ones_are_refused(daemon):
    sandbox = daemon.run()
    for value in (-1, 10**9, 10**30, 1.5, "60", None):
        status, body = daemon.http("POST", f"/sandboxes/{sandbox.id}/timeout", {"timeout": value})
        assert status == 400 and body["code"] == 400, (value, body)
    daemon.cli("run", "-t", "tiny", "--timeout", "1000000h").expect(2)
    assert sandbox.info()["expires_at"] is None
