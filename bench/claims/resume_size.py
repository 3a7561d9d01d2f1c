"""Resume of a large guest over a small one that does the same: cost follows what is touched, not the RAM's size."""

from report import ratio_result

RUNS = 15
WARM_UP = 2
LARGE, SMALL = 4096, 256
WORKING_SET = 64


def measure(world, runs=RUNS):
    sandboxes = {size: world.create(size) for size in (LARGE, SMALL)}
    for sandbox in sandboxes.values():
        sandbox.dirty(WORKING_SET)
        sandbox.pause()
    figures = [measure_once(sandboxes, number) for number in range(WARM_UP + runs)][WARM_UP:]
    for sandbox in sandboxes.values():
        sandbox.kill()
    return ratio_result(
        "resume of a 4 GiB guest over a 256 MiB guest with the same working set",
        1.1,
        f"the same for a guest of {SMALL} MiB; both idle guests of one recipe with {WORKING_SET} MiB in a tmpfs",
        figures,
        "resume_4096_ms",
        "resume_256_ms",
        ("load_4096_ms", "load_256_ms", "agent_4096_ms", "agent_256_ms"),
    )


def measure_once(sandboxes, number):
    figures = {}
    for size in (LARGE, SMALL) if number % 2 == 0 else (SMALL, LARGE):
        info, resume_ms = sandboxes[size].resume()
        timings = info["timings"]
        figures[f"resume_{size}_ms"] = resume_ms
        figures[f"load_{size}_ms"] = (timings["running_us"] - timings["spawned_us"]) / 1000
        figures[f"agent_{size}_ms"] = (timings["agent_us"] - timings["running_us"]) / 1000
        sandboxes[size].pause()
    return figures
