"""How much memory the daemon takes for a pause, however much the guest has written."""

from pathlib import Path

from report import Result, summary
from world import status_bytes

RUNS = 5
SIZE = 2048
DIRTY = 1536


def measure(world, runs=RUNS):
    sandbox = world.create(SIZE)
    sandbox.bring_worker()
    sandbox.pause()
    figures = [measure_once(world, sandbox, number) for number in range(runs)]
    sandbox.kill()
    return Result(
        claim="own memory of the capture in a pause of a 2 GiB guest with 1.5 GiB dirtied",
        unit="MiB",
        target=64,
        reference="the daemon's resident memory right before the pause, from which its peak is counted",
        runs=figures,
        ratios=[run["daemon_mib"] for run in figures],
        details=[summary(figures, key) for key in figures[0]],
    )


def measure_once(world, sandbox, number):
    """Half text, half random bytes: what is compressed, and what is stored as it is."""
    sandbox.resume()
    sandbox.work("random", DIRTY // 2, seed=number, file="random")
    sandbox.work("text", DIRTY // 2, seed=number, file="text")
    pids = {"daemon": world.daemon.process.pid, "image_server": world.image_server()}
    before = {}
    for name, pid in pids.items():
        Path(f"/proc/{pid}/clear_refs").write_text("5\n")  # its peak is now what it has
        before[name] = status_bytes(pid, "VmRSS")
    capture = sandbox.pause()[0]["capture"]
    private = capture["bytes_private"] / 2**20
    if private < DIRTY:
        raise RuntimeError(f"only {private:.0f} MiB of the guest are private")
    figures = {f"{name}_mib": (status_bytes(pid, "VmHWM") - before[name]) / 2**20 for name, pid in pids.items()}
    return {**figures, "private_mib": private, "stopped_ms": capture["stopped_us"] / 1000}
