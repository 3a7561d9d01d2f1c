"""Guest memory that an idle fork has for itself; all the rest is shared with its image."""

import re
import statistics
import time
from pathlib import Path

from report import Result

FORKS = 16
IDLE_SECONDS = 5


def measure(world, runs=FORKS):
    sandbox = world.create(256)
    bare = world.bare(sandbox.info())
    forks, _ = sandbox.fork(runs)
    time.sleep(IDLE_SECONDS)  # this is what is measured: what idling costs
    own = [fork.stats() for fork in forks]
    kernels = [private_bytes(fork.info()["vmm_pid"]) for fork in forks]
    for fork in forks:
        fork.kill()
    info, _ = sandbox.pause()
    bares = bare.start_and_look(info["snapshot"], runs, 4, look)
    sandbox.kill()
    figures = [
        {
            "fork_mib": stats["private_bytes"] / 2**20,
            "fork_by_smaps_mib": kernel / 2**20,
            "bare_mib": reference / 2**20,
            "vmm_resident_mib": stats["vmm_rss_bytes"] / 2**20,
        }
        for stats, kernel, reference in zip(own, kernels, bares)
    ]
    return Result(
        claim=f"private guest memory per idle fork of a 256 MiB guest, {IDLE_SECONDS} s after the fork",
        unit="MiB",
        target=1.5,
        reference="the same guest in bare QEMUs, without the agent's reseeding: "
        f"{statistics.median(bares) / 2**20:.2f} MiB",
        runs=figures,
        ratios=[figure["fork_mib"] for figure in figures],
        details=[
            f"{key.replace('_', ' ')}: median {statistics.median(f[key] for f in figures):.2f}" for key in figures[0]
        ],
    )


def look(pids):
    time.sleep(IDLE_SECONDS)
    return [private_bytes(pid) for pid in pids]


def private_bytes(pid):
    """The kernel's own count of the anonymous pages in the mapping of the memory image."""
    within = False
    total = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            within = line.endswith("/memory")
        elif within and line.startswith(("Anonymous:", "Swap:")):
            total += int(line.split()[1]) * 1024
    return total
