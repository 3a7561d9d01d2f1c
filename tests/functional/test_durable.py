"""A durable sandbox outlives a crash of everything with what its guest had flushed."""

import os
import signal

from guest import boot_id
from harness import wait_until


def test_it_boots_from_what_was_flushed(new_daemon):
    daemon = new_daemon()
    durable, other = daemon.run("--durable", "--env", "A=b", "--cpus", "1"), daemon.run()
    before = boot_id(durable)
    for sandbox in (durable, other):
        sandbox.sh("echo kept > /root/kept; sync; echo nonce > /dev/shm/nonce")
    daemon.crash()
    daemon.start()
    assert other.state() == "lost"
    info = durable.info()
    assert info["state"] == "paused" and info["durable"]
    snapshot = daemon.json("snapshot", "info", info["snapshot"])
    assert snapshot["state_bytes"] == 0 and snapshot["disk_consistency"] == "crashed"
    assert durable.resume()["env"] == {"A": "b"}
    assert durable.sh("cat /root/kept; ls /dev/shm") == "kept"
    assert boot_id(durable) != before
    daemon.expect_consistent()
    daemon.cli("kill", "--all").expect(0)
    daemon.expect_clean()


def test_what_was_written_since_the_last_snapshot_counts(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run("--durable")
    sandbox.sh("echo one > /root/one; sync")
    sandbox.pause()
    sandbox.resume()
    sandbox.sh("echo two > /root/two; sync")
    sandbox.fork()[0].kill()
    sandbox.sh("echo three > /root/three; sync")
    os.kill(sandbox.info()["vmm_pid"], signal.SIGKILL)
    wait_until(lambda: sandbox.state() == "paused", "its disk is kept")
    sandbox.resume()
    assert sandbox.sh("cat /root/one /root/two /root/three").split() == ["one", "two", "three"]
    daemon.cli("store", "verify").expect(0)
