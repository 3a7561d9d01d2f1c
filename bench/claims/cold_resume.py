"""A resume whose images are in no cache, with and without pushing the working set ahead, and a hot one.

The page cache is dropped as a whole; then another sandbox is resumed, so that QEMU's own files are there again, as on
a host that is in use. That the image isn't is checked.
"""

import os
import statistics
import subprocess
import time
from pathlib import Path

from report import Result, ratio_result, summary

RUNS = 9
WARM_UP = 1
SIZE = 512
WORKING_SET_SECONDS = 30
CACHED_MAX = 1 << 20
WAYS = ("hot", "cold", "prefetched")


def measure(world, runs=RUNS):
    template = world.template(SIZE, "base")
    other = world.create(256)  # QEMU's files stay mapped
    sandbox = world.create_from(template)[0]
    sandbox.sh("python3 -c 'import json, http.server; print(json.dumps(list(range(100000))))' >/dev/null")
    snapshot = sandbox.pause()[0]["snapshot"]
    hint = world.snapshot_directory(snapshot) / "working-set"
    working_set = record(world, snapshot, hint)
    rounds = (measure_once(world, snapshot, hint, working_set, number) for number in range(WARM_UP + runs))
    figures = list(rounds)[WARM_UP:]
    sandbox.kill()
    other.kill()
    # What a run's cold resume costs more than its hot one may be little by chance, so the medians are taken for that.
    hot, cold = (statistics.median(run[key] for run in figures) for key in ("hot_ms", "cold_ms"))
    removed = [100 * (cold - run["prefetched_ms"]) / (cold - hot) for run in figures]
    reference = (
        f"the same resume of a {SIZE} MiB guest, request to agent acknowledged: hot, with its image in the page cache; "
        "cold, without working set and page cache; prefetched, with the working set"
    )
    share = Result(
        claim="share of what a cold resume costs beyond a hot one that the working-set prefetch removes",
        unit="%",
        target=70,
        reference=reference,
        runs=figures,
        ratios=removed,
        details=[summary(figures, f"{way}_ms") for way in WAYS],
        at_least=True,
    )
    claim = "cold resume with working-set prefetch over hot resume"
    return [share, ratio_result(claim, 1.4, reference, figures, "prefetched_ms", "hot_ms", ("cold_ms", "hint_mib"))]


def record(world, snapshot, hint):
    """The working set that the first resume leaves."""
    sandbox = world.create_from(snapshot)[0]
    deadline = time.monotonic() + WORKING_SET_SECONDS
    while not hint.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no working set within {WORKING_SET_SECONDS} s of a first resume")
        time.sleep(0.1)
    sandbox.kill()
    return hint.read_bytes()


def measure_once(world, snapshot, hint, working_set, number):
    figures = {"hint_mib": hint_bytes(working_set) / 2**20}
    turn = number % len(WAYS)
    for way in WAYS[turn:] + WAYS[:turn]:
        for file in hint.parent.glob("working-set*"):  # also the parent's, which is used as long as there is none
            file.unlink()
        if way != "cold":
            hint.write_bytes(working_set)
        if way == "hot":
            resume(world, snapshot)
        else:
            drop_page_cache(world, snapshot)
        figures[f"{way}_ms"] = resume(world, snapshot)
    return figures


def resume(world, snapshot):
    world.settle()
    sandbox, elapsed = world.create_from(snapshot)
    sandbox.kill()
    world.settle()
    return elapsed


def drop_page_cache(world, snapshot):
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1\n")
    resume(world, world.template(256))
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", world.image(snapshot)]
    cached = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout or 0)
    if cached > CACHED_MAX:
        raise RuntimeError(f"{cached} bytes of the image are in the page cache still")


def hint_bytes(working_set):
    """Bytes of memory that it names (docs/snapshot-format.md)."""
    runs = int.from_bytes(working_set[8:12], "little")
    return 4096 * sum(int.from_bytes(working_set[28 + 8 * i : 32 + 8 * i], "little") for i in range(runs))
