"""One page of an image that is in no cache, from the fault until the data is there."""

import contextlib
import os
import statistics
import subprocess
from pathlib import Path

from report import ratio_result
from world import bench_program, run_program

RUNS = 7
SIZE = 512
PAGES = 400


def measure(world, runs=RUNS):
    snapshot = world.template_snapshot(world.template(SIZE, "base"))
    images, description = world.export(snapshot)
    layers = [world.data / "layers" / layer["id"] for layer in description["memory"]["layers"]]
    layer = max(layers, key=lambda path: path.stat().st_size)
    subject = world.image(snapshot)
    figures = []
    with memory_server(images / "memory", world.directory / "memory-server") as reference:
        read_ahead_of(reference).write_text(read_ahead_of(subject).read_text())
        for _ in range(runs):
            world.settle()
            arguments = ("cold", subject, reference, images / "memory", layer, PAGES)
            figures.append(medians(run_program("touch-pages", *arguments)))
            alone = medians(run_program("touch-pages", *arguments, "random"))
            figures[-1].update({f"{key}_random": value for key, value in alone.items() if key != "disk_us"})
    world.forget_export()
    for figure in figures:
        figure["without_disk_over_plain"] = (figure["image_us"] - figure["disk_us"]) / figure["plain_us"]
    return ratio_result(
        "one random 4 KiB page of a cold image over a plain FUSE file that copies it from memory",
        1.5,
        "a FUSE server of one thread that answers from memory, with the same read-ahead, mapped the same way; medians "
        f"of {PAGES} pages a run. disk_us: reading as much as one frame takes with O_DIRECT; _random: the same with "
        "MADV_RANDOM",
        figures,
        "image_us",
        "plain_us",
        ("disk_us", "without_disk_over_plain", "image_us_random", "plain_us_random"),
    )


def medians(figures):
    names = {"subject": "image_us", "reference": "plain_us", "disk": "disk_us"}
    return {name: statistics.median(figures[key]) / 1000 for key, name in names.items()}


def read_ahead_of(path):
    device = os.stat(path).st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")


@contextlib.contextmanager
def memory_server(content, directory):
    """The reference's file."""
    directory.mkdir()
    command = [bench_program("memory-server"), content, directory]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("memory-server does not start")
        yield directory / "memory"
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        directory.rmdir()
