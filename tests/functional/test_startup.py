"""A daemon that can't start says why, and leaves everything as it is."""

import hashlib
import shutil
import socket
import sqlite3

import pytest

from guest import Counter
from harness import Daemon, executable, run_process


def expect_refusal(daemon, *words, seconds=20, wrapper=()):
    """The daemon doesn't start, says why in one line, and ends with 1."""
    result = run_process([*wrapper, *daemon.arguments()], seconds=seconds)
    result.expect_failure("dormoused:", *words)
    assert result.out == ""
    return result


def test_not_root(directory, tmp_path):
    """Copied, because whoever is nobody may not be able to read the build directory."""
    directory.joinpath("bin").mkdir(exist_ok=True)
    copied = shutil.copy(executable("dormoused"), directory / "bin")
    arguments = [copied, f"--data={directory}/bin/x", f"--socket={directory}/bin/s", "--listen=127.0.0.1:0"]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    run_process([*nobody, *arguments], seconds=20).expect_failure("root", "sudo")


def test_the_socket_is_not_for_everybody(daemon):
    assert daemon.socket.stat().st_mode & 0o007 == 0
    assert daemon.data.stat().st_mode & 0o077 == 0


def test_a_port_in_use(new_daemon):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        daemon = new_daemon(start=False)
        daemon.port = taken.getsockname()[1]
        expect_refusal(daemon, str(daemon.port), "use")


def test_a_data_directory_in_use(daemon, directory):
    sandbox = daemon.run()
    second = Daemon(directory, "second")
    second.data = daemon.data
    expect_refusal(second, "another", str(daemon.data))
    assert sandbox.sh("echo on") == "on"


def test_a_socket_in_use(daemon, directory):
    second = Daemon(directory, "second")
    second.socket = daemon.socket
    expect_refusal(second, str(daemon.socket))
    assert daemon.list() == {}, "the first one's socket is untouched"


def test_bad_options(directory):
    dormoused = executable("dormoused")
    for options in (["--listen=0.0.0.0:0"], ["--listen=127.0.0.1"], ["--listen=127.0.0.1:99999"], ["--frobnicate"],
                    ["extra"], ["--network-ahead=-1"]):  # fmt: skip
        result = run_process([dormoused, f"--data={directory}/never", *options], seconds=20)
        result.expect(2)
        assert result.error.startswith(("dormoused: ", f"{dormoused}: ")), result
        assert not (directory / "never").exists()


def test_a_path_that_cannot_be_a_socket(new_daemon):
    daemon = new_daemon(start=False)
    daemon.socket = daemon.data / ("x" * 150)
    expect_refusal(daemon, "socket")
    daemon.socket = daemon.data / "no/such/directory/socket"
    expect_refusal(daemon, "no/such/directory")


def corrupt_with_garbage(path):
    path.write_bytes(b"garbage" * 1000)


def corrupt_in_the_middle(path):
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


def corrupt_a_record(path):
    with sqlite3.connect(path) as database:
        database.execute('UPDATE object SET document = \'{"state": "dancing"}\'')
    database.close()


def of_a_later_version(path):
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 1000")
    database.close()


@pytest.mark.parametrize("corrupt", [corrupt_with_garbage, corrupt_in_the_middle, corrupt_a_record, of_a_later_version])
def test_a_corrupt_registry_is_refused_and_left_as_it_is(new_daemon, corrupt):
    daemon = new_daemon()
    sandbox = daemon.run()
    counter = Counter(sandbox)
    state = counter.read()
    paused = daemon.run()
    paused.pause()
    pid = sandbox.info()["vmm_pid"]
    assert daemon.stop() == 0
    registry = daemon.data / "registry.db"
    copy = registry.read_bytes()
    corrupt(registry)
    digest = hashlib.sha256(registry.read_bytes()).hexdigest()
    snapshots = daemon.snapshots()
    expect_refusal(daemon, "registry")
    assert hashlib.sha256(registry.read_bytes()).hexdigest() == digest
    assert daemon.snapshots() == snapshots, "nothing is removed on the word of a damaged registry"
    assert pid in daemon.vmm_pids()
    # With the registry restored, everything is there again.
    registry.write_bytes(copy)
    for name in ("registry.db-wal", "registry.db-shm"):
        (daemon.data / name).unlink(missing_ok=True)
    daemon.start()
    counter.wait_beyond(state)
    paused.resume()
    assert paused.sh("echo on") == "on"
