"""Fixtures. `daemon` is shared and has the template `tiny`; a test that harms its daemon asks for `new_daemon`."""

import os
import tempfile
from pathlib import Path

import pytest

import watchdog
from harness import Daemon, Outside, run_process, wait_until

CACHE = Path(os.environ.get("DORMOUSE_TEST_CACHE", "/var/cache/dormouse-tests"))
SHARED_PARTS = ("cache", "kernels")
TINY_OPTIONS = ("--memory", "256M")
SMALL_DISK_BYTES = 800 << 20
DIRECTORY = pytest.StashKey[Path]()


@pytest.fixture(scope="session")
def directory(request):
    """Where everything of this session is; a watchdog removes it with all that belongs to it, come what may."""
    assert os.geteuid() == 0, "the functional tests make namespaces, mounts and VMs: run them as root"
    base = Path(os.environ.get("DORMOUSE_TEST_DATA", "/var/tmp"))
    base.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="dormouse-tests-", dir=base)).resolve()
    made.chmod(0o711)
    request.config.stash[DIRECTORY] = made
    process = watchdog.start(made)
    yield made
    process.stdin.close()
    assert process.wait(timeout=120) == 0
    assert not made.exists(), f"{made} could not be removed"


def share_caches(data):
    """Downloads and finished trees outlive the session: what takes minutes is made once."""
    data.mkdir(mode=0o700)
    for part in SHARED_PARTS:
        shared = CACHE / part
        shared.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shared.stat().st_dev == data.stat().st_dev:  # the daemon makes hard links
            (data / part).symlink_to(shared)


@pytest.fixture(scope="session")
def seed(directory):
    """A data directory with the template `tiny`, whose daemon is stopped: others begin as copies of it."""
    share_caches(directory / "seed")
    daemon = Daemon(directory, "seed").start()
    daemon.build("tiny", *TINY_OPTIONS)
    daemon.expect_clean()
    assert daemon.stop() == 0
    return daemon.data


@pytest.fixture(scope="session")
def session_daemon(directory, seed):
    daemon = Daemon(directory, "shared", seed).start()
    # The first sandbox opens what stays open: libraries, the registry's journal.
    daemon.run().exec("true").expect(0)
    daemon.cli("kill", "--all").expect(0)
    daemon.expect_clean()
    daemon.expect_filled()
    before = daemon.descriptors()
    pid = daemon.process.pid
    yield daemon
    assert daemon.process.pid == pid, "the shared daemon was restarted"
    daemon.expect_clean()
    daemon.expect_filled()
    wait_until(lambda: daemon.descriptors() <= before, f"at most {before} descriptors, not {daemon.descriptors()}")
    assert daemon.stop() == 0
    assert daemon.slots() == [], "the daemon left its ready namespaces"
    daemon.dispose()


@pytest.fixture
def daemon(session_daemon):
    """The shared daemon; a test's sandboxes are removed after it, and nothing may be left of them."""
    yield session_daemon
    assert session_daemon.process.poll() is None, f"the daemon ended:\n{session_daemon.log()[-3000:]}"
    session_daemon.cli("kill", "--all").expect(0)
    session_daemon.expect_clean()


@pytest.fixture
def sandbox(daemon):
    return daemon.run()


@pytest.fixture(scope="session")
def base(session_daemon):
    """The name of the template with Debian's user land; minutes at the very first time."""
    session_daemon.build("base", seconds=900)
    return "base"


@pytest.fixture
def new_daemon(directory, seed, request):
    """Makes daemons that may be harmed. They have `tiny`, unless seed=None is given."""
    made = []

    def make(start=True, **options):
        name = f"d{len(made)}-{abs(hash(request.node.nodeid)) % 100000}"
        made.append(Daemon(directory, name, **{"seed": seed, **options}))
        return made[-1].start() if start else made[-1]

    yield make
    for daemon in made:
        daemon.dispose()


@pytest.fixture
def outside(directory):
    neighbour = Outside(directory.name)
    yield neighbour
    neighbour.remove()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """With a failure, what the daemons said last."""
    outcome = yield
    report = outcome.get_result()
    if not report.failed or DIRECTORY not in item.config.stash:
        return
    for log in sorted(item.config.stash[DIRECTORY].glob("*.log")):
        tail = log.read_text(errors="replace")[-1500:]
        if tail:
            report.sections.append((log.name, tail))


@pytest.fixture
def small_disk(directory):
    """An ext4 of a few hundred MiB in a file, mounted below the session's directory."""
    image = directory / "small.img"
    mount = directory / "small"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(SMALL_DISK_BYTES)
    run_process(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image]).expect(0)
    run_process(["mount", "-o", "loop", image, mount]).expect(0)
    yield mount
    run_process(["umount", mount]).expect(0)
    image.unlink()
    mount.rmdir()
