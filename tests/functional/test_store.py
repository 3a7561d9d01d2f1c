"""Looking after the store: inspect, verify, diff, mount, stats, gc, compact, dedup-report, and damage."""

import json
import os
import re
import subprocess
from contextlib import contextmanager

import pytest

from harness import executable, run_process, wait_until

MIB = 1 << 20
PAGE = 4096
SIZES = [4096, 16384, 65536, 262144, 2097152]


def tiny_snapshot(daemon):
    (found,) = (template["snapshot"] for template in daemon.json("template", "ls") if template["name"] == "tiny")
    return found


def write_noise(sandbox, mebibytes, name="noise"):
    sandbox.sh(f"dd if=/dev/urandom of=/dev/shm/{name} bs=1M count={mebibytes} 2>/dev/null")


def own_layers(daemon, snapshot, other):
    """Layers that `snapshot` needs and `other` doesn't."""
    theirs = {layer["id"] for layer in daemon.json("snapshot", "inspect", other)["layers"]}
    return [layer for layer in daemon.json("snapshot", "inspect", snapshot)["layers"] if layer["id"] not in theirs]


def flip_byte(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


# ---- inspect ----


def test_inspect_shows_what_a_snapshot_consists_of(sandbox):
    daemon = sandbox.daemon
    write_noise(sandbox, 8)
    snapshot = sandbox.pause()["snapshot"]
    seen = daemon.json("snapshot", "inspect", snapshot[:10])
    assert seen["snapshot"] == daemon.json("snapshot", "info", snapshot)
    sections = {section["name"] for section in seen["manifest"]["sections"]}
    assert sections == {"description", "layers", "memory map", "disk map", "device state"}
    assert seen["manifest"]["format"] == "DORMSNAP" and seen["manifest"]["incompatible_features"] == 0
    manifest = daemon.data / "snapshots" / snapshot / "manifest"
    assert seen["manifest"]["bytes"] == manifest.stat().st_size
    assert seen["memory"]["pages"] * PAGE == 256 * MIB
    for image in ("memory", "disk"):
        in_layers = sum(layer[f"{image}_pages"] for layer in seen["layers"])
        assert in_layers == seen[image]["mapped_pages"] > 0
    for layer in seen["layers"]:
        assert layer["problem"] is None
        assert layer["bytes"] == (daemon.data / "layers" / layer["id"]).stat().st_size
        assert layer["frames"] <= layer["pages"] <= layer["frames"] * layer["frame_pages"]
    text = daemon.cli("snapshot", "inspect", snapshot).expect(0).out
    assert all(layer["id"] in text for layer in seen["layers"]) and "device state" in text


def test_inspect_shows_the_recorded_working_set(sandbox):
    daemon = sandbox.daemon
    snapshot = sandbox.pause()["snapshot"]
    assert daemon.json("snapshot", "inspect", snapshot)["working_set"] is None
    sandbox.resume()
    recorded = wait_until(
        lambda: daemon.json("snapshot", "inspect", snapshot)["working_set"], "the working set is recorded"
    )
    assert 0 < recorded["runs"] <= recorded["pages"]


# ---- verify ----


def test_what_was_just_written_is_sound(sandbox):
    daemon = sandbox.daemon
    snapshot = sandbox.pause()["snapshot"]
    layers = daemon.json("snapshot", "inspect", snapshot)["layers"]
    found = daemon.json("snapshot", "verify", snapshot)
    assert found["damaged"] == [] and found["snapshots"] == 1 and found["layers"] == len(layers)
    assert found["layer_bytes"] == sum(layer["bytes"] for layer in layers)
    assert "sound" in daemon.cli("snapshot", "verify", snapshot).expect(0).out
    everything = daemon.json("store", "verify")
    assert everything["damaged"] == [] and everything["snapshots"] == len(daemon.listed_snapshots())
    # Each layer is read once, though snapshots share it.
    assert everything["layers"] <= daemon.json("store", "stats")["layers"]
    daemon.cli("store", "verify").expect(0)


def test_a_damaged_layer_harms_only_what_needs_it(new_daemon):
    daemon = new_daemon()
    harmed, unharmed = daemon.run(), daemon.run()
    for sandbox in (harmed, unharmed):
        write_noise(sandbox, 16)
    running = daemon.run()
    snapshot = harmed.pause()["snapshot"]
    other = unharmed.pause()["snapshot"]
    for layer in own_layers(daemon, snapshot, tiny_snapshot(daemon)):
        for part in range(1, 20):  # in many frames, so that the guest will miss one of them
            flip_byte(daemon.data / "layers" / layer["id"], layer["bytes"] * part // 20)

    error = daemon.cli("snapshot", "verify", snapshot).expect_failure("damaged", "frame", "layer")
    assert f"dormouse kill {harmed.id[:12]}" in error
    daemon.cli("snapshot", "verify", other).expect(0)
    everything = daemon.cli("store", "verify").expect_failure("1 of 3")
    assert everything
    (line,) = daemon.cli("store", "verify").out.splitlines()
    assert line.startswith(snapshot) and "frame" in line
    (damage,) = daemon.cli("store", "verify", "--json").expect(1).json()["damaged"]
    assert damage["id"] == snapshot and damage["remedy"]

    resumed = daemon.cli("resume", harmed.id, seconds=180)
    if resumed.status == 0:  # what the agent needs was sound; the rest is not
        harmed.exec("sh", "-c", "cat /dev/shm/noise > /dev/null", seconds=180)
        wait_until(lambda: harmed.state() == "lost", "the sandbox is lost", 60)
        assert "damaged" in harmed.info()["lost_reason"]
    else:
        resumed.expect_failure("damaged|lost")
    assert running.sh("echo alive") == "alive"
    unharmed.resume()
    assert unharmed.sh("wc -c < /dev/shm/noise") == str(16 * MIB)
    assert daemon.run().sh("echo alive") == "alive"
    daemon.cli("kill", harmed.id).expect(0)
    wait_until(lambda: daemon.json("store", "verify")["damaged"] == [], "the damaged snapshot is gone")


def test_a_missing_layer_is_named(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run()
    write_noise(sandbox, 4)
    snapshot = sandbox.pause()["snapshot"]
    (lost, *_) = own_layers(daemon, snapshot, tiny_snapshot(daemon))
    (daemon.data / "layers" / lost["id"]).unlink()
    daemon.cli("snapshot", "verify", snapshot).expect_failure("damaged", lost["id"], "missing")
    (layer,) = (one for one in daemon.json("snapshot", "inspect", snapshot)["layers"] if one["id"] == lost["id"])
    assert "missing" in layer["problem"] and layer["frames"] is None
    daemon.cli("resume", sandbox.id).expect_failure(lost["id"])
    daemon.cli("snapshot", "verify", tiny_snapshot(daemon)).expect(0)


@pytest.mark.parametrize("section", ["layers", "memory map"])
def test_a_damaged_manifest_stands_in_nobodys_way(new_daemon, section):
    daemon = new_daemon()
    sandbox, other = daemon.run(), daemon.run()
    snapshot = sandbox.pause()["snapshot"]
    sections = daemon.json("snapshot", "inspect", snapshot)["manifest"]["sections"]
    (offset,) = (one["offset"] for one in sections if one["name"] == section)
    flip_byte(daemon.data / "snapshots" / snapshot / "manifest", offset)
    daemon.cli("snapshot", "verify", snapshot).expect_failure("damaged")
    daemon.cli("snapshot", "inspect", snapshot).expect_failure("damaged")
    daemon.cli("store", "verify").expect_failure("1 of 2")
    assert daemon.json("store", "stats")["snapshots"] == 2
    problems = {one["id"]: one["problem"] for one in daemon.json("snapshot", "ls")}
    assert len(problems) == 2 and "damaged" in problems.pop(snapshot) and list(problems.values()) == [None]
    if section == "layers":  # what it needs can't be known
        daemon.cli("store", "gc").expect_failure("none was removed", snapshot)
    else:
        daemon.cli("store", "gc").expect(0)
    daemon.cli("resume", sandbox.id).expect_failure("damaged")
    assert other.pause()["state"] == "paused"
    other.resume()
    assert other.sh("echo alive") == "alive"
    daemon.cli("kill", sandbox.id).expect(0)
    daemon.cli("store", "gc").expect(0)


# ---- diff ----


def test_diff_counts_what_changed(sandbox):
    daemon = sandbox.daemon
    template = tiny_snapshot(daemon)
    write_noise(sandbox, 8)
    sandbox.sh("dd if=/dev/urandom of=/root/noise bs=1M count=4 2>/dev/null; sync")
    captured = sandbox.pause()
    same = daemon.json("snapshot", "diff", template, template)
    assert same["memory"]["different_pages"] == same["disk"]["different_pages"] == 0
    assert same["memory"]["read_pages"] == 0, "the same stored pages are not read"
    diff = daemon.json("snapshot", "diff", template, captured["snapshot"], "--ranges")
    memory, disk = diff["memory"], diff["disk"]
    assert 8 * MIB <= memory["different_bytes"] <= captured["capture"]["bytes_written"]
    assert 4 * MIB <= disk["different_bytes"] < 64 * MIB
    for image in (memory, disk):
        assert image["different_bytes"] == image["different_pages"] * PAGE
        assert image["different_pages"] <= image["read_pages"] < image["pages"][0]
        assert sum(one["count"] for one in image["ranges"]) == image["different_pages"]
        starts = [one["page"] for one in image["ranges"]]
        assert starts == sorted(starts) and not image["ranges_cut"]
    back = daemon.json("snapshot", "diff", captured["snapshot"], template)
    assert back["memory"]["different_pages"] == memory["different_pages"]
    assert back["memory"]["ranges"] == [] and back["memory"]["ranges_cut"]
    table = daemon.cli("snapshot", "diff", template, captured["snapshot"], "--ranges").expect(0).out
    assert str(memory["different_pages"]) in table


def test_diff_of_an_unknown_snapshot(daemon):
    daemon.cli("snapshot", "diff", tiny_snapshot(daemon), "zzzzzz").expect_failure("there is no", "zzzzzz")
    daemon.cli("snapshot", "diff", tiny_snapshot(daemon), "../x").expect_failure()


# ---- mount ----


@contextmanager
def mounted(daemon, snapshot, point):
    point.mkdir()
    said = daemon.json("snapshot", "mount", snapshot, point)
    try:
        yield said
    finally:
        subprocess.run(["umount", point], check=True)
        point.rmdir()


def loop_devices(daemon):
    listed = subprocess.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True)
    return [line for line in listed.stdout.decode().splitlines() if str(daemon.data) in line]


def test_mount_shows_the_disk_as_it_was(sandbox, directory):
    daemon = sandbox.daemon
    sandbox.sh("echo kept > /root/note; dd if=/dev/urandom of=/root/noise bs=1M count=8 2>/dev/null; sync")
    digest = sandbox.sh("sha256sum < /root/noise")
    snapshot = sandbox.pause()["snapshot"]
    sandbox.resume()
    sandbox.sh("echo changed > /root/note; sync")
    point = directory / "mount-point"
    with mounted(daemon, snapshot[:12], point) as said:
        assert said == {"snapshot": snapshot, "directory": str(point)}
        assert (point / "root/note").read_text() == "kept\n"
        found = run_process(["sha256sum", point / "root/noise"]).expect(0).out.split()[0]
        assert found == digest.split()[0]
        with pytest.raises(OSError):
            (point / "root/new").write_text("never")
        (line,) = (line for line in open("/proc/self/mounts") if str(point) in line)
        options = line.split()[3].split(",")
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
        # It stays when the snapshot goes.
        sandbox.kill()
        wait_until(lambda: snapshot not in daemon.listed_snapshots(), "the snapshot is removed")
        assert (point / "root/note").read_text() == "kept\n"
    wait_until(lambda: not loop_devices(daemon), "the loop device goes with the mount")


def test_mount_says_what_to_do(daemon, directory):
    daemon.cli("snapshot", "mount", tiny_snapshot(daemon), directory / "nowhere").expect_failure("nowhere", "No such")
    daemon.cli("snapshot", "mount", "zzzzzz", directory).expect_failure("there is no", "zzzzzz")
    point = directory / "other-mount-point"
    point.mkdir()
    said = daemon.cli("snapshot", "mount", tiny_snapshot(daemon), point).expect(0).out
    assert f"umount {point}" in said
    subprocess.run(["umount", point], check=True)
    point.rmdir()


# ---- stats, gc, compact ----


def test_stats_agree_with_the_files(sandbox):
    daemon = sandbox.daemon
    sandbox.pause()
    stats = wait_until(
        lambda: (seen := daemon.json("store", "stats"))["unreachable_bytes"] == 0 and seen, "background gc has ended"
    )
    files = list((daemon.data / "layers").iterdir())
    assert stats["layers"] == len(files)
    assert stats["layer_bytes"] == sum(file.stat().st_size for file in files)
    assert stats["snapshots"] == len(daemon.listed_snapshots())
    assert stats["image_bytes"] > stats["layer_bytes"]
    assert stats["image_server"]["misses"] > 0
    assert stats["image_server"]["failed_reads"] == 0
    text = daemon.cli("store", "stats").expect(0).out
    assert re.search(r"^misses +\d+$", text, re.MULTILINE)
    status, answer = daemon.http("GET", "/dormouse/v1/store")
    assert status == 200 and answer["layers"] == stats["layers"]


def test_gc_removes_what_nothing_needs(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run()
    sandbox.pause()
    # A layer that a commit left which never happened: as any other, but no manifest names it.
    kept = sorted(os.listdir(daemon.data / "layers"))
    orphan = "a" * 20
    (daemon.data / "layers" / orphan).write_bytes(b"x" * 5000)
    assert daemon.json("store", "stats")["unreachable_bytes"] == 5000
    assert daemon.json("store", "gc") == {"layers_removed": 1, "bytes_removed": 5000}
    assert sorted(os.listdir(daemon.data / "layers")) == kept
    assert daemon.json("store", "gc") == {"layers_removed": 0, "bytes_removed": 0}
    sandbox.resume()
    assert sandbox.sh("echo alive") == "alive"


def test_compact_leaves_alone_what_is_within_the_bounds(sandbox):
    daemon = sandbox.daemon
    snapshot = sandbox.pause()["snapshot"]
    before = daemon.json("snapshot", "inspect", snapshot)
    (result,) = map(json.loads, daemon.cli("store", "compact", snapshot, "--json").expect(0).out.splitlines())
    assert result["id"] == snapshot and not result["compacted"]
    assert result["layers"] == [len(before["layers"])] * 2
    assert daemon.json("snapshot", "inspect", snapshot) == before
    lines = daemon.cli("store", "compact").expect(0).out.splitlines()
    assert len(lines) == len(daemon.listed_snapshots())
    daemon.cli("store", "compact", "zzzzzz").expect_failure("zzzzzz")


def test_layers_stay_within_the_bound(sandbox):
    """Each pause adds layers; compaction, in the background or asked for, keeps them few, and what is read the same."""
    daemon = sandbox.daemon
    write_noise(sandbox, 4, "kept")
    digest = sandbox.sh("sha256sum /dev/shm/kept")
    for round_ in range(20):
        write_noise(sandbox, 1, f"noise{round_}")
        snapshot = sandbox.pause()["snapshot"]
        if round_ < 19:
            sandbox.resume()
    daemon.cli("store", "compact").expect(0)
    assert len(daemon.json("snapshot", "inspect", snapshot)["layers"]) <= 16
    daemon.cli("snapshot", "verify", snapshot).expect(0)
    sandbox.resume()
    assert sandbox.sh("sha256sum /dev/shm/kept") == digest


# ---- dedup-report ----


def dedup_report(daemon, *arguments, env=None):
    command = [executable("dormouse"), "dedup-report", f"--data={daemon.data}", *arguments]
    return run_process(command, seconds=300, env=env or {**os.environ, "DORMOUSE_SOCKET": "/nonexistent"})


def test_dedup_report_finds_what_is_equal(new_daemon):
    daemon = new_daemon()
    # The same 16 MiB, written by two guests on their own, and 8 MiB that only one has.
    data = os.urandom(16 * MIB)
    first, second = daemon.run(), daemon.run()
    for sandbox in (first, second):
        sandbox.sh("cat > /dev/shm/same", data=data)
    write_noise(second, 8)
    snapshots = [sandbox.pause()["snapshot"] for sandbox in (first, second)]
    report = dedup_report(daemon, "--json").expect(0).json()
    assert set(report["snapshots"]) == {tiny_snapshot(daemon), *snapshots}
    assert report["snapshots"][0] == tiny_snapshot(daemon), "parents come first"
    for image in ("memory", "disk"):
        rows = report[image]["sizes"]
        assert [row["block_bytes"] for row in rows] == SIZES
        for row in rows:
            assert row["all"]["bytes"] <= row["chain"]["bytes"] <= row["fresh"]["bytes"]
            assert row["all"]["blocks"] <= row["chain"]["blocks"] <= row["fresh"]["blocks"]
            for part in ("fresh", "chain", "all"):
                assert row[part]["compressed_bytes"] <= row[part]["bytes"]
        assert rows[0]["fresh"]["bytes"] <= rows[-1]["fresh"]["bytes"], "larger blocks have more that isn't new"
    smallest = report["memory"]["sizes"][0]
    # In each chain the 16 MiB are new; together, one of them.
    assert smallest["chain"]["bytes"] - smallest["all"]["bytes"] >= 16 * MIB
    assert smallest["chain"]["bytes"] >= 40 * MIB
    assert 3 * 256 * MIB == report["memory"]["bytes"]

    one = dedup_report(daemon, snapshots[1][:10], "--json").expect(0).json()
    assert one["snapshots"] == [snapshots[1]]
    assert one["memory"]["sizes"][0]["all"] == one["memory"]["sizes"][0]["chain"]

    assert daemon.stop() == 0
    table = dedup_report(daemon, snapshots[1]).expect(0).out
    assert "2.0 MiB" in table and "memory" in table and "disk" in table
    daemon.start()


def test_dedup_report_says_what_is_wrong(daemon, directory):
    dedup_report(daemon, "zzzzzz").expect_failure("there is no snapshot", "zzzzzz")
    command = [executable("dormouse"), "dedup-report", f"--data={directory}/nothing"]
    run_process(command).expect_failure("nothing", "--data")
    dedup_report(daemon, "--memory=0").expect_failure(status=2)
