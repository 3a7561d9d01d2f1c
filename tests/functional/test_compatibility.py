"""Snapshots that can't go on on this host, and what belongs to a snapshot so that it can."""

import ctypes
import struct
import subprocess

import pytest

from guest import Counter, boot_id

HEADER_BYTES = 64
SECTION_BYTES = 32
DESCRIPTION = 1

QEMU = "/usr/bin/qemu-system-x86_64"


def checksum(data):
    library = ctypes.CDLL("libxxhash.so.0")
    library.XXH3_64bits.restype = ctypes.c_uint64
    return library.XXH3_64bits(bytes(data), ctypes.c_size_t(len(data)))


def edit_description(daemon, snapshot, old, new):
    """Replaces text of the description by text of the same length, in a manifest that stays valid."""
    assert len(old) == len(new)
    path = daemon.data / "snapshots" / snapshot / "manifest"
    manifest = bytearray(path.read_bytes())
    (sections,) = struct.unpack_from("<I", manifest, 24)
    table_end = HEADER_BYTES + sections * SECTION_BYTES
    for entry in range(HEADER_BYTES, table_end, SECTION_BYTES):
        kind, _, offset, length, found = struct.unpack_from("<IIQQQ", manifest, entry)
        if kind != DESCRIPTION:
            continue
        text = manifest[offset : offset + length]
        assert found == checksum(text) and text.count(old) == 1
        manifest[offset : offset + length] = text.replace(old, new)
        struct.pack_into("<Q", manifest, entry + 24, checksum(manifest[offset : offset + length]))
    struct.pack_into("<Q", manifest, 48, checksum(manifest[HEADER_BYTES:table_end]))
    struct.pack_into("<Q", manifest, 56, checksum(manifest[:56]))
    changed = path.with_name("changed")
    changed.write_bytes(manifest)
    changed.rename(path)


def description(daemon, snapshot):
    return daemon.json("snapshot", "inspect", snapshot)


def expect_refused(daemon, sandbox, *words):
    """A resume fails with the reason, starts nothing, and changes nothing."""
    snapshot = sandbox.info()["snapshot"]
    status, body = daemon.http("POST", f"/dormouse/v1/sandboxes/{sandbox.id}/resume", {})
    assert status == 409 and body["code"] == 409, body
    assert body["reason"] == "snapshot_incompatible" and body["status"] == "failed_precondition", body
    assert "--reboot" in body["hint"]
    for word in words:
        assert word in body["message"], body
    assert daemon.http("POST", f"/v2/sandboxes/{sandbox.id}/connect", {})[0] == 409
    daemon.cli("resume", sandbox.id).expect_failure("--reboot", *words)
    info = sandbox.info()
    assert (info["state"], info["snapshot"]) == ("paused", snapshot)
    assert sandbox.id not in daemon.vmm_pids().values()


def test_a_snapshot_says_what_it_needs(daemon):
    sandbox = daemon.run()
    sandbox.pause()
    seen = description(daemon, sandbox.info()["snapshot"])
    assert seen["vmm"].startswith("qemu ") and seen["accelerator"] in ("tcg", "kvm")
    assert seen["cpu_model"].startswith("qemu64,+ssse3,")
    assert seen["machine_revision"] >= 1
    assert seen["kernel"] and seen["snapshot"]["cpus"] == 1


FOREIGN = {
    "a later VMM": (b'"qemu 7.', b'"qemu 9.', "qemu 9.", "older"),
    "another VMM": (b'"qemu ', b'"qimu ', "qimu "),
    "KVM": (b'"tcg"', b'"kvm"', "KVM"),
    "another machine": (b'"machine_revision": ', b'"machine_revision":9', "revision 9"),
}


@pytest.mark.parametrize("old, new, words", [(f[0], f[1], f[2:]) for f in FOREIGN.values()], ids=FOREIGN.keys())
def test_what_can_not_go_on_is_refused_and_can_be_booted(daemon, old, new, words):
    sandbox = daemon.run()
    sandbox.sh("echo kept >/root/kept && sync")
    before = boot_id(sandbox)
    sandbox.pause()
    snapshot = sandbox.info()["snapshot"]
    real = description(daemon, snapshot)
    if real["accelerator"] == "kvm" and new == b'"kvm"':
        pytest.skip("KVM runs guests here")
    edit_description(daemon, snapshot, old, new)
    assert description(daemon, snapshot) != real
    expect_refused(daemon, sandbox, *words)
    sandbox.resume("--reboot")
    assert boot_id(sandbox) != before
    assert sandbox.sh("cat /root/kept") == "kept"
    # What it runs on now is what its next snapshot says, and that one goes on here.
    state = Counter(sandbox).read()
    sandbox.pause()
    now = description(daemon, sandbox.info()["snapshot"])
    for key in ("vmm", "accelerator", "cpu_model", "machine_revision"):
        assert now[key] == real[key]
    sandbox.resume()
    Counter(sandbox, start=False).wait_beyond(state)


def test_an_older_vmm_than_the_one_that_saved_is_refused(new_daemon, directory):
    daemon = new_daemon()
    sandbox = daemon.run()
    before = boot_id(sandbox)
    sandbox.pause()
    assert daemon.stop() == 0
    older = directory / "older-qemu"
    older.write_text("#!/bin/sh\necho QEMU emulator version 5.2.0 '(Debian)'\n")
    older.chmod(0o755)
    # Only what the daemon runs itself is replaced: VMMs see the host's /usr.
    script = f'mount --bind {older} {QEMU} && exec "$@"'
    daemon.wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"]
    daemon.start()
    expect_refused(daemon, sandbox, "5.2.0", "older")
    daemon.cli("run", "-t", "tiny").expect_failure("5.2.0", "dormouse template build tiny")
    sandbox.resume("--reboot")
    assert boot_id(sandbox) != before


def test_the_record_of_what_it_runs_on_survives_the_daemon(new_daemon):
    daemon = new_daemon()
    sandbox = daemon.run()
    sandbox.pause()
    real = description(daemon, sandbox.info()["snapshot"])
    sandbox.resume()
    daemon.kill()
    daemon.start()
    sandbox.pause()
    now = description(daemon, sandbox.info()["snapshot"])
    for key in ("vmm", "accelerator", "cpu_model", "machine_revision", "kernel"):
        assert now[key] == real[key]


def test_the_kernel_belongs_to_the_snapshot(new_daemon):
    """As a package's upgrade does it, the host's kernels are replaced by others, which don't even boot."""
    daemon = new_daemon()
    kernels = daemon.data / "kernels"
    if kernels.is_symlink():  # the cache of all sessions, which must stay as it is
        shared = kernels.resolve()
        kernels.unlink()
        subprocess.run(["cp", "--archive", shared, kernels], check=True)
    daemon.build("own", "--recipe", "tiny", "--memory", "128M")
    sandbox = daemon.run(template="own")
    state = Counter(sandbox).read()
    sandbox.pause()
    kernel = description(daemon, sandbox.info()["snapshot"])["kernel"]
    snapshot = daemon.data / "snapshots" / sandbox.info()["snapshot"]
    same = (snapshot / "kernel").stat().st_ino
    replaced = 0
    for path in [*kernels.rglob("vmlinuz*"), *kernels.rglob("initrd*")]:
        replaced += path.stat().st_ino == same
        other = path.with_name("new")
        other.write_bytes(b"no kernel")
        other.rename(path)
    assert replaced == 1, "the snapshot's kernel was not a link to the host's"
    sandbox.resume()
    Counter(sandbox, start=False).wait_beyond(state)
    child = sandbox.fork()[0]
    child.daemon.cli("pause", "--disk-only", child.id).expect(0)
    child.resume()
    assert child.sh("uname -r") == kernel
    booted = daemon.run("--memory", "192M", template="own")
    assert booted.sh("echo up") == "up"

