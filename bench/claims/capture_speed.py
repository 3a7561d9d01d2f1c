"""How fast a pause reads, compares, compresses and commits what a guest wrote, over zstd on the same pages."""

import os
import subprocess
import time

from report import ratio_result
from world import guest_memory, run_program

RUNS = 5
WARM_UP = 1
SIZE = 1024
# Binaries and text by the guest's own programs, made-up text, and a share that nothing compresses.
WORK = (
    "rm -f /dev/shm/*.tar; tar cf /dev/shm/usr.tar /usr/bin /usr/lib/python3.11 2>/dev/null; "
    "python3 -c 'print(sum(len(str(n) * 3) for n in [str(i) * 8 for i in range(400000)]))' >/dev/null"
)


def measure(world, runs=RUNS):
    sandbox = world.create_from(world.template(SIZE, "base"))[0]
    sandbox.bring_worker()
    sandbox.pause()
    figures = [measure_once(world, sandbox, number) for number in range(WARM_UP + runs)][WARM_UP:]
    sandbox.kill()
    return ratio_result(
        f"bytes/s of a pause (capture, dedup, compress, commit) of a {SIZE} MiB guest over zstd -1 -T0",
        1.0,
        "zstd -1 -T0 of the same private pages, from a file in the page cache to one on the same disk, without fsync; "
        "the pause also stops the guest, saves its devices and is durable at its end: with an fsync see "
        "zstd_durable_mib_s",
        figures,
        "pause_mib_s",
        "zstd_mib_s",
        ("zstd_durable_mib_s", "pause_cpu_s", "zstd_cpu_s", "stopped_ms", "private_mib", "changed_mib", "zstd_out_mib"),
        at_least=True,
    )


def measure_once(world, sandbox, number):
    pid = sandbox.resume()[0]["vmm_pid"]
    sandbox.sh(WORK)
    sandbox.work("text", 64, seed=number, file="text")
    sandbox.work("random", 32, seed=number, file="random")
    pages = world.directory / "pages"
    run_program("copy-private-pages", pid, pages, *guest_memory(pid))
    os.sync()
    cpu_s = world.daemon_cpu_seconds()
    capture = sandbox.pause()[0]["capture"]
    cpu_s = world.daemon_cpu_seconds() - cpu_s
    world.settle()
    size = pages.stat().st_size / 2**20
    plain_s, durable_s, zstd_cpu_s, out = compress(pages)
    pages.unlink()
    private = capture["bytes_private"] / 2**20
    return {
        "pause_mib_s": private / (capture["stopped_us"] / 1e6),
        "zstd_mib_s": size / plain_s,
        "zstd_durable_mib_s": size / durable_s,
        "pause_cpu_s": cpu_s,
        "zstd_cpu_s": zstd_cpu_s,
        "stopped_ms": capture["stopped_us"] / 1000,
        "private_mib": private,
        "changed_mib": capture["bytes_written"] / 2**20,
        "zstd_out_mib": out / 2**20,
    }


def compress(path):
    """(seconds, seconds with an fsync, CPU seconds, size)"""
    out = path.with_suffix(".zst")
    before = os.times()
    begun = time.monotonic()
    subprocess.run(["zstd", "-1", "-T0", "-q", "-f", path, "-o", out], check=True)
    plain_s = time.monotonic() - begun
    with open(out, "rb") as file:
        os.fsync(file.fileno())
    durable_s = time.monotonic() - begun
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    size = out.stat().st_size
    out.unlink()
    return plain_s, durable_s, cpu_s, size
