"""Resume, from the client's request to its answer, over starting QEMU on the same snapshot.

The answer comes when the guest's agent has acknowledged clock, entropy and identity. The reference ends earlier: when
QEMU says that the guest runs.
"""

from report import ratio_result

RUNS = 15
WARM_UP = 2


def measure(world, runs=RUNS):
    sandbox = world.create(256)
    bare = world.bare(sandbox.info())
    figures = [measure_once(sandbox, bare, number) for number in range(WARM_UP + runs)][WARM_UP:]
    sandbox.kill()
    return ratio_result(
        "resume of a 256 MiB guest, request to agent acknowledged, over the bare floor",
        1.5,
        "posix_spawn of the same QEMU with the same arguments on the same snapshot until QMP says that the guest "
        "runs; sockets, TAP and overlay made beforehand; no daemon, no jail, no agent",
        figures,
        "resume_ms",
        "bare_ms",
        ("bare_spawn_ms", "prepare_and_spawn_ms", "start_and_load_ms", "agent_ms", "record_and_reply_ms"),
    )


def measure_once(sandbox, bare, number):
    """The order alternates, so that what drifts hits both."""
    info, _ = sandbox.pause()
    start = None
    if number % 2 == 0:
        start = bare.start(info["snapshot"])
    info, resume_ms = sandbox.resume()
    if start is None:
        info, _ = sandbox.pause()
        start = bare.start(info["snapshot"])
        sandbox.resume()
    timings = info["timings"]
    return {
        "resume_ms": resume_ms,
        "bare_ms": start["total_us"] / 1000,
        "bare_spawn_ms": start["guests"][0]["spawned_us"] / 1000,
        "prepare_and_spawn_ms": timings["spawned_us"] / 1000,
        "start_and_load_ms": (timings["running_us"] - timings["spawned_us"]) / 1000,
        "agent_ms": (timings["agent_us"] - timings["running_us"]) / 1000,
        "record_and_reply_ms": resume_ms - timings["agent_us"] / 1000,
    }
