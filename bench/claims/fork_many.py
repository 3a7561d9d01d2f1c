"""A fork of 20, amortised, over 20 starts of bare QEMUs on the same snapshot, as many at a time as the daemon starts."""

import os

from report import ratio_result
from world import NETWORK_AHEAD, VMM_AHEAD

RUNS = 9
WARM_UP = 1
FORKS = 20
PARALLEL = 2 * os.cpu_count()


def measure(world, runs=RUNS):
    sandbox = world.create(256)
    bare = world.bare(sandbox.info())
    sandbox.pause()
    info, _ = sandbox.resume()
    figures = [measure_once(sandbox, bare, info["snapshot"], number) for number in range(WARM_UP + runs)][WARM_UP:]
    sandbox.kill()
    return ratio_result(
        f"{FORKS} forks of a running 256 MiB guest, amortised, over {FORKS} bare QEMU starts",
        1.3,
        f"{FORKS} bare starts as in the first claim, {PARALLEL} at a time (2 per CPU, as the daemon does), all left "
        "running until the last one runs; the forks include capturing the parent and every agent's acknowledgement, "
        f"from a daemon that keeps {NETWORK_AHEAD} networks and {VMM_AHEAD} VMMs ready",
        figures,
        "fork_ms",
        "bare_ms",
        ("capture_ms", "parent_stopped_ms"),
    )


def measure_once(sandbox, bare, snapshot, number):
    figures = {}
    sandbox.world.refill()
    for what in ("fork", "bare") if number % 2 == 0 else ("bare", "fork"):
        if what == "bare":
            figures["bare_ms"] = bare.start(snapshot, FORKS, PARALLEL)["total_us"] / 1000 / FORKS
            continue
        forks, elapsed = sandbox.fork(FORKS)
        figures["fork_ms"] = elapsed / FORKS
        capture = sandbox.info()["capture"]
        figures["capture_ms"] = capture["total_us"] / 1000
        figures["parent_stopped_ms"] = capture["stopped_us"] / 1000
        for fork in forks:
            fork.kill()
    return figures
