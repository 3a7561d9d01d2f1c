"""How long a pause stops a large guest over a small one, when both have written the same since their snapshot."""

from report import ratio_result

RUNS = 11
WARM_UP = 1
LARGE, SMALL = 4096, 256
DIRTY = 64
# What a guest writes beside the file: page tables, caches, the shell that did it.
SLACK = 8


def measure(world, runs=RUNS):
    sandboxes = {size: world.create(size) for size in (LARGE, SMALL)}
    for sandbox in sandboxes.values():
        sandbox.dirty(DIRTY)
        sandbox.pause()
    figures = [measure_once(sandboxes, number) for number in range(WARM_UP + runs)][WARM_UP:]
    for sandbox in sandboxes.values():
        sandbox.kill()
    return ratio_result(
        "stop time of a pause of a 4 GiB guest over a 256 MiB guest, both with 64 MiB dirtied",
        1.3,
        f"the same for a guest of {SMALL} MiB; the stop lasts until the snapshot is durable and committed",
        figures,
        "stopped_4096_ms",
        "stopped_256_ms",
        ("pause_4096_ms", "pause_256_ms", "private_4096_mib", "private_256_mib"),
    )


def measure_once(sandboxes, number):
    figures = {}
    for size in (LARGE, SMALL) if number % 2 == 0 else (SMALL, LARGE):
        sandboxes[size].resume()
        sandboxes[size].dirty(DIRTY)
        info, pause_ms = sandboxes[size].pause()
        private = info["capture"]["bytes_private"] / 2**20
        if not DIRTY <= private <= DIRTY + SLACK:
            raise RuntimeError(f"{private:.1f} MiB of the guest of {size} MiB are private, not about {DIRTY}")
        figures[f"stopped_{size}_ms"] = info["capture"]["stopped_us"] / 1000
        figures[f"pause_{size}_ms"] = pause_ms
        figures[f"private_{size}_mib"] = private
    return figures
