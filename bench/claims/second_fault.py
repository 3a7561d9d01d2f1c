"""What a second child of a snapshot pays for a page that the first one has brought into the page cache."""

import os
import shutil

from report import ratio_result
from world import run_program

RUNS = 15
SIZE = 512
PAGE = 4096


def measure(world, runs=RUNS):
    snapshot = world.template_snapshot(world.template(SIZE, "base"))
    images, _ = world.export(snapshot)
    image, plain = world.image(snapshot), images / "memory"
    single = images / "memory.single"
    copy_in_single_pages(plain, single)
    world.settle()
    passes = run_program("touch-pages", "hot", image, plain, runs)
    against_single = run_program("touch-pages", "hot", image, single, runs)
    world.forget_export()
    figures = [
        {
            **{
                f"{name}_{way}_ns": passes[way][whose][number]
                for way in ("scattered", "in_order", "written")
                for whose, name in (("subject", "image"), ("reference", "plain"))
            },
            "image_over_single_pages": against_single["scattered"]["subject"][number]
            / against_single["scattered"]["reference"][number],
        }
        for number in range(runs)
    ]
    return ratio_result(
        "second child's fault on a page of a memory image over a plain file in the page cache",
        1.2,
        f"the same {SIZE} MiB as a plain file mapped MAP_PRIVATE; every page read once, in scattered order, by a new "
        "process. A plain file that was written in one go is in the page cache in large folios, of which one fault maps "
        "many pages; image_over_single_pages: over the same file in folios of one page",
        figures,
        "image_scattered_ns",
        "plain_scattered_ns",
        ("image_over_single_pages", "image_in_order_ns", "plain_in_order_ns", "image_written_ns", "plain_written_ns"),
    )


def copy_in_single_pages(path, copy):
    """A copy that has come into the page cache page by page."""
    shutil.copyfile(path, copy)
    with open(copy, "r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for offset in range(0, os.fstat(file.fileno()).st_size, PAGE):
            os.pread(file.fileno(), PAGE, offset)
