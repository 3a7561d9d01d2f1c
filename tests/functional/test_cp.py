"""dormouse cp: files and trees, both ways."""

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest


@pytest.fixture
def tree(tmp_path):
    """Modes, links, an empty directory, odd names, an empty and a large file."""
    root = tmp_path / "tree"
    (root / "deep/er").mkdir(parents=True)
    (root / "empty directory").mkdir()
    (root / "deep/er/file").write_text("content\n")
    (root / "deep/script").write_text("#!/bin/sh\n")
    (root / "deep/script").chmod(0o750)
    (root / "secret").write_text("s")
    (root / "secret").chmod(0o600)
    (root / "empty").touch()
    (root / "süß — 'quoted' \"name\"").write_text("odd")
    (root / "link").symlink_to("deep/er/file")
    (root / "dangling").symlink_to("/no/such/file")
    (root / "large").write_bytes(os.urandom(5 << 20))
    (root / "deep/er").chmod(0o711)
    return root


def describe(root):
    """Path → (kind and mode, content) of all that is below."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = None
        mode = status.st_mode if not stat.S_ISLNK(status.st_mode) else stat.S_IFLNK
        found[str(path.relative_to(root))] = (oct(mode), content)
    return found


def copy(sandbox, source, destination, **options):
    return sandbox.daemon.cli("cp", source, destination, **options)


def test_a_large_file_there_and_back(sandbox, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 << 20) + b"end")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    copy(sandbox, source, f"{sandbox.id}:/tmp/there").expect(0)
    assert sandbox.sh("sha256sum < /tmp/there").split()[0] == digest
    copy(sandbox, f"{sandbox.id}:/tmp/there", tmp_path / "back").expect(0)
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest


def test_a_tree_there_and_back_is_the_same(sandbox, tree, tmp_path):
    copy(sandbox, tree, f"{sandbox.id}:copied").expect(0)
    assert sandbox.sh("cat /home/user/copied/link") == "content"
    assert sandbox.sh("stat -c %a /home/user/copied/secret /home/user/copied/deep/script").split() == ["600", "750"]
    assert sandbox.sh("stat -c %U /home/user/copied/secret") == "user"
    copy(sandbox, f"{sandbox.id}:copied", tmp_path / "back").expect(0)
    assert describe(tmp_path / "back") == describe(tree)


def test_into_a_directory_or_to_a_name(sandbox, tree, tmp_path):
    sandbox.sh("mkdir /home/user/there", user="user")
    copy(sandbox, tree / "secret", f"{sandbox.id}:there").expect(0)
    copy(sandbox, tree / "secret", f"{sandbox.id}:there/renamed").expect(0)
    copy(sandbox, f"{tree}/deep/.", f"{sandbox.id}:there").expect(0)
    assert sandbox.sh("ls /home/user/there").split() == ["er", "renamed", "script", "secret"]
    (tmp_path / "into").mkdir()
    copy(sandbox, f"{sandbox.id}:there", tmp_path / "into").expect(0)
    copy(sandbox, f"{sandbox.id}:there/secret", tmp_path / "into/named").expect(0)
    assert (tmp_path / "into/there/er/file").read_text() == "content\n"
    assert (tmp_path / "into/named").read_text() == "s"


def test_as_another_user(sandbox, tree):
    copy(sandbox, tree / "secret", f"{sandbox.id}:/root/secret").expect(1)
    sandbox.daemon.cli("cp", "-u", "root", tree / "secret", f"{sandbox.id}:/root/secret").expect(0)
    assert sandbox.sh("stat -c %U:%a /root/secret") == "root:600"


def test_what_is_not_there_is_one_clear_line(sandbox, tmp_path):
    copy(sandbox, tmp_path / "absent", f"{sandbox.id}:x").expect_failure("absent")
    copy(sandbox, f"{sandbox.id}:/no/such", tmp_path / "x").expect_failure("/no/such")
    copy(sandbox, f"{sandbox.id}:/etc/passwd", tmp_path / "no/such/directory/x").expect_failure("no/such/directory")
    copy(sandbox, f"{sandbox.id}:/etc/passwd", "/proc/x").expect_failure("/proc")


def test_no_space_in_the_guest_is_an_error(sandbox, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(bytes(80 << 20))
    copy(sandbox, large, f"{sandbox.id}:large").expect_failure("space")
    assert sandbox.sh("echo on") == "on"


def archive(path, *members):
    """A tar archive of (name, fields of its header)."""
    with tarfile.open(path, "w") as made:
        for name, fields in members:
            member = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(member, field, value)
            content = b"bad" if member.isreg() else b""
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))


HOSTILE = {
    "dots": [("../escaped", {})],
    "dots inside": [("a/../../escaped", {})],
    "the root": [("/escaped-to-the-root", {})],
    "through a link": [("up", {"type": tarfile.SYMTYPE, "linkname": "../.."}), ("up/escaped", {})],
    "over a link": [("out", {"type": tarfile.SYMTYPE, "linkname": "../escaped"}), ("out", {})],
    "a hard link": [("passwd", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})],
    "a hard link upwards": [("victim", {"type": tarfile.LNKTYPE, "linkname": "../../victim"}), ("victim", {})],
    "a device": [("device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    "a set-uid program": [("setuid", {"mode": 0o6755})],
}


def test_a_hostile_guests_archive_does_not_escape(sandbox, tmp_path):
    """The guest's tar is replaced by one that sends what it likes."""
    sandbox.sh("mkdir -m 777 /home/user/copied; rm -f /bin/tar /usr/bin/tar; "
               "printf '#!/bin/sh\\ntouch /tmp/used\\ncp /tmp/hostile.tar $3\\n' > /bin/tar; "
               "chmod 755 /bin/tar")  # fmt: skip
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    links = Path("/etc/passwd").stat().st_nlink
    for name, members in HOSTILE.items():
        archive(tmp_path / "hostile.tar", ("honest", {}), *members)
        copy(sandbox, tmp_path / "hostile.tar", f"{sandbox.id}:/tmp/hostile.tar").expect(0)
        destination = tmp_path / name / "destination"
        destination.mkdir(parents=True)
        copy(sandbox, f"{sandbox.id}:copied", destination)
        sandbox.sh("rm /tmp/used")
        assert (destination / "copied/honest").read_text() == "bad", f"{name}: not even the honest file came"
        assert not list(tmp_path.rglob("escaped*")), name
        assert not Path("/escaped-to-the-root").exists()
        assert victim.read_text() == "untouched" and victim.stat().st_nlink == 1, name
        assert Path("/etc/passwd").stat().st_nlink == links
        for path in destination.rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), (name, path)
            assert stat.S_ISLNK(mode) or not mode & (stat.S_ISUID | stat.S_ISGID), (name, path)
