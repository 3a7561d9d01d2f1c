"""Pause of a guest that has written much, over QEMU's own way to save a guest."""

from report import ratio_result

RUNS = 7
WARM_UP = 1
SIZE = 2048
DIRTY = 256
SLACK = 16


def measure(world, runs=RUNS):
    sandbox = world.create(SIZE)
    bare = world.bare(sandbox.info())
    sandbox.dirty(DIRTY)
    sandbox.pause()
    figures = [measure_once(sandbox, bare) for _ in range(WARM_UP + runs)][WARM_UP:]
    sandbox.kill()
    return ratio_result(
        "pause of a 2 GiB guest with 256 MiB dirtied over QEMU's own migrate of it to a file",
        0.25,
        "a bare QEMU restored from the very snapshot that the pause made, then stop and migrate to a file on the same "
        "disk, bandwidth unlimited, until QEMU reports completion. The file is not durable then; the pause's "
        "snapshot is: with an fsync of the file see migrate_durable",
        figures,
        "pause_ms",
        "migrate_ms",
        ("migrate_durable_ms", "stopped_ms", "private_mib", "written_mib", "migrate_file_mib"),
    )


def measure_once(sandbox, bare):
    sandbox.resume()
    sandbox.dirty(DIRTY)
    info, pause_ms = sandbox.pause()
    capture = info["capture"]
    private = capture["bytes_private"] / 2**20
    if not DIRTY <= private <= DIRTY + SLACK:
        raise RuntimeError(f"{private:.1f} MiB of the guest are private, not about {DIRTY}")
    migration = bare.migrate(info["snapshot"])
    return {
        "pause_ms": pause_ms,
        "migrate_ms": migration["completed_us"] / 1000,
        "migrate_durable_ms": migration["durable_us"] / 1000,
        "stopped_ms": capture["stopped_us"] / 1000,
        "private_mib": private,
        "written_mib": capture["bytes_written"] / 2**20,
        "migrate_file_mib": migration["file_bytes"] / 2**20,
    }
