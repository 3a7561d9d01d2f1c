"""Resume after a long history of pauses over resume after one."""

from report import ratio_result

RUNS = 11
WARM_UP = 1
SIZE = 256
CYCLES = 200
FILE = 128
CHANGED_PAGES = 1024


def measure(world, runs=RUNS):
    old, young = (prepare(world) for _ in range(2))
    for number in range(CYCLES):
        cycle(old, number)
        if number % 50 == 49:
            world.say(f"  {number + 1} of {CYCLES} cycles")
    cycle(young, 0)
    figures = [measure_once(world, old, young, number) for number in range(WARM_UP + runs)][WARM_UP:]
    for sandbox in (old, young):
        sandbox.kill()
    world.forget_export()
    return ratio_result(
        f"resume after {CYCLES} pause/resume cycles that each changed 4 MiB in random places over resume after one",
        1.1,
        f"an equal guest of {SIZE} MiB after one such cycle; both are resumed and paused in turn, "
        f"{WARM_UP + runs} times without further change. hot_: another sandbox started from the snapshot that has just "
        "been resumed",
        figures,
        "resume_old_ms",
        "resume_young_ms",
        ("hot_old_ms", "hot_young_ms", "layers_old", "extents_old", "layers_young", "extents_young"),
    )


def prepare(world):
    sandbox = world.create(SIZE)
    sandbox.bring_worker()
    sandbox.work("random", FILE)
    return sandbox


def cycle(sandbox, number):
    """From running to running."""
    sandbox.work("scatter", CHANGED_PAGES, seed=number + 1)
    sandbox.pause()
    sandbox.resume()


def measure_once(world, old, young, number):
    figures = {}
    pairs = [("old", old), ("young", young)]
    for name, sandbox in pairs if number % 2 == 0 else reversed(pairs):
        snapshot = sandbox.pause()[0]["snapshot"]
        memory = world.export(snapshot)[1]["memory"]
        figures[f"layers_{name}"] = len(memory["layers"])
        figures[f"extents_{name}"] = memory["extents"]
        figures[f"resume_{name}_ms"] = sandbox.resume()[1]
        child, figures[f"hot_{name}_ms"] = world.create_from(snapshot)
        child.kill()
    return figures
