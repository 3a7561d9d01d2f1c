#!/usr/bin/python3
"""Removes what a test session left on the host, also when pytest was killed.

Runs as a child of pytest in a session of its own and waits for the end of its standard input, which comes when
pytest ends, however it ends. All that a session makes is found by the name of its directory:

    processes        with a path in the directory in their arguments, or in their environment's DORMOUSE_SOCKET
                     (daemons, clients), and those that carry a daemon's mark (DORMOUSE_VMM=INSTANCE/...)
    namespaces       dormouse-SLOT and dmhSLOT, whose claim in /run/dormouse/net names a data directory in it;
                     network namespaces that are called like it
    mounts           below it

Usage: watchdog.py DIRECTORY
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLAIMS = Path("/run/dormouse/net")
DEATH_SECONDS = 20


def data_directories(directory):
    # A mount whose server is dead can't be looked into: isfile() then says no, where glob() would raise.
    paths = [path for pattern in ("*", "*/*") for path in Path(directory).glob(pattern)]
    return [path for path in paths if os.path.isfile(path / "instance")]


def marks(directory):
    """The beginnings of the environments of VMMs that belong to daemons in `directory`."""
    return [f"DORMOUSE_VMM={(data / 'instance').read_text().strip()}/".encode() for data in data_directories(directory)]


def processes(directory):
    """Yields the ids of the session's processes, the daemons' VMMs included."""
    within = os.fsencode(directory) + b"/"
    prefixes = marks(directory)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            any(within in argument for argument in arguments)
            or any(variable.startswith(b"DORMOUSE_SOCKET=" + within) for variable in environment)
            or any(environment[0].startswith(prefix) for prefix in prefixes)
        ):
            yield int(entry.name)


def claimed_slots(directory):
    """Slots of namespaces that belong to a data directory in `directory`."""
    if not CLAIMS.is_dir():
        return []
    slots = []
    for claim in CLAIMS.iterdir():
        try:
            owner = claim.read_text().partition("\n")[2]
        except (OSError, UnicodeDecodeError):
            continue
        if claim.name.isdigit() and owner.startswith(f"{directory}/"):
            slots.append(int(claim.name))
    return slots


def mounts(directory):
    """Mount points below `directory`, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{directory}/")), key=len, reverse=True)


def end_processes(directory):
    deadline = time.monotonic() + DEATH_SECONDS
    while pids := list(processes(directory)):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if time.monotonic() > deadline:
            print(f"watchdog: still alive: {pids}", file=sys.stderr)
            return
        time.sleep(0.02)


def quietly(*command):
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def clean(directory):
    end_processes(directory)
    for slot in claimed_slots(directory):
        quietly("ip", "netns", "delete", f"dormouse-{slot}")
        quietly("ip", "link", "delete", f"dmh{slot}")
        (CLAIMS / str(slot)).unlink(missing_ok=True)
    quietly("ip", "netns", "delete", Path(directory).name)
    for point in mounts(directory):
        quietly("umount", "--lazy", point)
    if not mounts(directory):
        shutil.rmtree(directory, ignore_errors=True)


def start(directory):
    """Starts one for `directory`; it works when its standard input is closed, or when the caller is gone."""
    return subprocess.Popen([sys.executable, __file__, str(directory)], stdin=subprocess.PIPE, start_new_session=True)


def main():
    directory = sys.argv[1]
    # Whoever interrupts the tests means pytest; this process ends by itself right after.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean(directory)


if __name__ == "__main__":
    main()
