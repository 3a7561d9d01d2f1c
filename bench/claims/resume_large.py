"""Resume of a large guest full of data that nothing compresses over a small one that does the same."""

from report import ratio_result
from world import available_bytes

RUNS = 9
WARM_UP = 2
LARGE, SMALL = 8192, 512
FILLED = 6144
# The guest's own memory, and its image in the page cache beside it.
NEEDED = (FILLED + 4096) << 20


def measure(world, runs=RUNS):
    if available_bytes() < NEEDED:
        raise RuntimeError(f"{NEEDED >> 20} MiB of available memory are needed, {available_bytes() >> 20} are there")
    sandboxes = {size: world.create(size) for size in (LARGE, SMALL)}
    world.say(f"  filling {FILLED} MiB")
    sandboxes[LARGE].bring_worker()
    sandboxes[LARGE].work("random", FILLED)
    for sandbox in sandboxes.values():
        sandbox.pause()
    figures = [measure_once(sandboxes, number) for number in range(WARM_UP + runs)][WARM_UP:]
    for sandbox in sandboxes.values():
        sandbox.kill()
    for size in (LARGE, SMALL):
        world.remove_template(world.template(size))
    return ratio_result(
        "resume of an 8 GiB guest with 6 GiB of incompressible memory over a 512 MiB guest",
        1.2,
        f"the same for a guest of {SMALL} MiB of the same recipe, request to agent acknowledged; both idle",
        figures,
        f"resume_{LARGE}_ms",
        f"resume_{SMALL}_ms",
        tuple(f"{part}_{size}_ms" for part in ("prepare", "load", "agent") for size in (LARGE, SMALL)),
    )


def measure_once(sandboxes, number):
    figures = {}
    for size in (LARGE, SMALL) if number % 2 == 0 else (SMALL, LARGE):
        info, figures[f"resume_{size}_ms"] = sandboxes[size].resume()
        timings = info["timings"]
        figures[f"prepare_{size}_ms"] = timings["spawned_us"] / 1000
        figures[f"load_{size}_ms"] = (timings["running_us"] - timings["spawned_us"]) / 1000
        figures[f"agent_{size}_ms"] = (timings["agent_us"] - timings["running_us"]) / 1000
        sandboxes[size].pause()
    return figures
