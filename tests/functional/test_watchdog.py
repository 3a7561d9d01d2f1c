"""A test session that is killed leaves nothing on the host."""

import subprocess
import sys
import tempfile
from pathlib import Path

import watchdog
from harness import wait_until

SESSION = """
import sys, watchdog
from pathlib import Path
from harness import Daemon
directory, seed = map(Path, sys.argv[1:])
watchdog.start(directory)
daemon = Daemon(directory, "d", seed).start()
sandbox = daemon.run()
client = daemon.popen("exec", sandbox.id, "--", "sleep", "1000")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_session_is_cleaned_up_after(directory, seed):
    session = Path(tempfile.mkdtemp(prefix="dormouse-killed-", dir=directory.parent))
    victim = subprocess.Popen(
        [sys.executable, "-c", SESSION, session, seed],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert victim.stdout.readline() == b"ready\n"
    assert len(list(watchdog.processes(session))) >= 3  # daemon, VMM, client
    assert watchdog.claimed_slots(session)
    victim.kill()
    victim.communicate()
    wait_until(lambda: not session.exists(), "the removal of everything", seconds=60)
    assert not watchdog.claimed_slots(session) and not list(watchdog.processes(session))
