"""What a second child of a snapshot pays for a page that the first one has brought into the page cache."""

from report import ratio_result
from world import run_program

RUNS = 15
SIZE = 512


def measure(world, runs=RUNS):
    snapshot = world.template_snapshot(world.template(SIZE, "base"))
    images, _ = world.export(snapshot)
    world.settle()
    passes = run_program("touch-pages", "hot", world.image(snapshot), images / "memory", runs)
    world.forget_export()
    figures = [
        {
            f"{name}_ns": passes[way][whose][number]
            for way in ("scattered", "in_order", "written")
            for whose, name in (("subject", f"image_{way}"), ("reference", f"plain_{way}"))
        }
        for number in range(runs)
    ]
    return ratio_result(
        "second child's fault on a page of a memory image over a plain file in the page cache",
        1.2,
        f"the same {SIZE} MiB as a plain file mapped MAP_PRIVATE; every page read once, in scattered order, by a new "
        "process",
        figures,
        "image_scattered_ns",
        "plain_scattered_ns",
        ("image_in_order_ns", "plain_in_order_ns", "image_written_ns", "plain_written_ns"),
    )
