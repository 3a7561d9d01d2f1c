"""A sandbox's disk through its overlay over qemu-nbd with a qcow2 overlay on the same base.

Both are read and written by fio with the same block size and depth, past the page cache. The guest is stopped
meanwhile, and killed afterwards.
"""

import contextlib
import json
import os
import signal
import subprocess
import time

from report import ratio_result

RUNS = 5
WARM_UP = 1
SECONDS = 3
OFFSET, SIZE = "1G", "512M"  # beyond what the guest's file system has in use
WORK = {
    "sequential read": ("read", "128k", 4),
    "sequential write": ("write", "128k", 4),
    "4 KiB random read": ("randread", "4k", 8),
    "4 KiB random write": ("randwrite", "4k", 8),
}
START_SECONDS = 10


def measure(world, runs=RUNS):
    template = world.template(256, "tiny", "2G")
    images, _ = world.export(world.template_snapshot(template))
    sandbox = world.create_from(template)[0]
    pid = sandbox.info()["vmm_pid"]
    os.kill(pid, signal.SIGSTOP)
    overlay = ["--ioengine=libaio", "--direct=1", f"--filename={world.data}/overlays/{sandbox.id}"]
    with qemu_nbd(images / "rootfs", world.directory) as uri:
        reference = ["--ioengine=nbd", f"--uri={uri}"]
        for target in (overlay, reference):
            fio(target, "write", "1M", 4, f"--io_size={SIZE}")
        figures = [measure_once(world, overlay, reference, number) for number in range(WARM_UP + runs)][WARM_UP:]
    os.kill(pid, signal.SIGCONT)
    sandbox.kill()
    world.forget_export()
    return [result(what, [run[what] for run in figures]) for what in WORK]


def result(what, figures):
    _, block, depth = WORK[what]
    return ratio_result(
        f"rootfs {what} through the overlay over qemu-nbd",
        1.0,
        f"qemu-nbd --cache=none of a qcow2 overlay over the same raw base, blocks of {block}, depth {depth}, "
        f"{SIZE} that had been written before, {SECONDS} s",
        figures,
        "overlay_mib_s",
        "qemu_nbd_mib_s",
        at_least=True,
    )


def measure_once(world, overlay, reference, number):
    figures = {}
    pairs = [("overlay_mib_s", overlay), ("qemu_nbd_mib_s", reference)]
    for what, (kind, block, depth) in WORK.items():
        figures[what] = {}
        for name, target in pairs if number % 2 == 0 else reversed(pairs):
            world.settle()
            figures[what][name] = fio(target, kind, block, depth, "--time_based", f"--runtime={SECONDS}") / 2**20
    return figures


def fio(target, kind, block, depth, *more):
    """Bytes/s."""
    command = ["fio", "--name=disk", "--output-format=json", f"--rw={kind}", f"--bs={block}", f"--iodepth={depth}"]
    command += [f"--offset={OFFSET}", f"--size={SIZE}", *more, *target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"fio {kind} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    # Some engines print a line of their own first.
    job = json.loads(done.stdout[done.stdout.index("{\n") :])["jobs"][0]
    return job["read" if "read" in kind else "write"]["bw_bytes"]


@contextlib.contextmanager
def qemu_nbd(base, directory):
    """Its URI."""
    overlay, socket = directory / "reference.qcow2", directory / "reference.sock"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay]
    subprocess.run(create, check=True)
    command = ["qemu-nbd", "--persistent", f"--socket={socket}", "--format=qcow2", "--cache=none", "--discard=unmap"]
    process = subprocess.Popen([*command, overlay])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("qemu-nbd does not start")
            time.sleep(0.02)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.wait()
        overlay.unlink()
        socket.unlink(missing_ok=True)
