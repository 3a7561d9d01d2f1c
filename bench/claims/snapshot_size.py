"""What a snapshot's memory takes on disk over a compressed copy of it, and what the next one adds."""

import subprocess

from report import ratio_result

RUNS = 3
SIZE = 512
TEXT = 256
CHANGED_PAGES = 1024


def measure(world, runs=RUNS):
    template = world.template(SIZE, "base")
    first = measure_first(world, world.template_snapshot(template))
    sandbox = world.create_from(template)[0]
    sandbox.bring_worker()
    sandbox.work("text", TEXT)
    before = sandbox.pause()[0]["snapshot"]
    second = []
    for number in range(runs):
        known = {layer["id"] for layer in memory_layers(world, before)}
        sandbox.resume()
        sandbox.work("scatter-text", CHANGED_PAGES, seed=number + 1)
        before = sandbox.pause()[0]["snapshot"]
        second.append(measure_second(world, before, known))
    sandbox.kill()
    world.forget_export()
    return [
        ratio_result(
            f"size of the memory of a first snapshot of a {SIZE} MiB guest over zstd -3 of all of it",
            1.05,
            "zstd -3 of the raw memory; the snapshot is a template's, with tables and checksums",
            [first],
            "layers_mib",
            "zstd_mib",
            ("mapped_mib",),
        ),
        ratio_result(
            f"size of a second snapshot after 4 MiB of text changed in {SIZE} MiB over zstd -3 of all of it",
            0.1,
            f"zstd -3 of the raw memory, of which {TEXT} MiB are text; the snapshot also holds what the guest's kernel "
            "and shell wrote meanwhile",
            second,
            "new_layer_mib",
            "zstd_mib",
        ),
    ]


def memory_layers(world, snapshot):
    return world.export(snapshot)[1]["memory"]["layers"]


def measure_first(world, snapshot):
    images, description = world.export(snapshot)
    memory = description["memory"]
    return {
        "layers_mib": sum(layer["bytes"] for layer in memory["layers"]) / 2**20,
        "zstd_mib": compressed_size(images / "memory") / 2**20,
        "mapped_mib": memory["mapped_bytes"] / 2**20,
    }


def measure_second(world, snapshot, known):
    new = sum(layer["bytes"] for layer in memory_layers(world, snapshot) if layer["id"] not in known)
    images, _ = world.export(snapshot)
    return {"new_layer_mib": new / 2**20, "zstd_mib": compressed_size(images / "memory") / 2**20}


def compressed_size(path):
    out = path.with_suffix(".zst")
    subprocess.run(["zstd", "-3", "-q", "-f", path, "-o", out], check=True)
    size = out.stat().st_size
    out.unlink()
    return size
