"""The template `base`: Debian's user land, as users of E2B know it."""

import time

import pytest


@pytest.fixture
def debian(daemon, base):
    return daemon.run(template=base)


def user(sandbox, script):
    return sandbox.sh(script, user="user")


def test_its_programs(debian):
    assert user(debian, ". /etc/os-release; echo $ID $VERSION_ID") == "debian 12"
    for command in ("bash --version", "python3 --version", "python --version", "git --version", "curl --version",
                    "sudo --version", "tput -V", "ls --version"):  # fmt: skip
        assert user(debian, f"{command} 2>&1 | head -n 1"), command
    assert debian.exec("which", "mcp-gateway").status != 0
    assert user(debian, "ls /etc/ssl/certs/ca-certificates.crt")


def test_its_user(debian):
    assert user(debian, "id -un; pwd; echo $HOME").split() == ["user", "/home/user", "/home/user"]
    assert user(debian, "sudo -n id -un") == "root"
    assert user(debian, "touch /home/user/x && stat -c %U /home/user/x") == "user"


def test_python_goes_on_over_pause_and_fork(debian):
    user(
        debian,
        """
cat > counter.py <<'END'
import os, secrets, time
nonce, count = secrets.token_hex(16), 0
while True:
    count += 1
    with open("/dev/shm/new", "w") as file:
        file.write(f"{count} {nonce} {os.getpid()}")
    os.rename("/dev/shm/new", "/dev/shm/count")
    time.sleep(0.05)
END
setsid python counter.py >/dev/null 2>&1 &
until [ -e /dev/shm/count ]; do sleep 0.05; done""",
    )

    def read(sandbox):
        count, nonce, pid = user(sandbox, "cat /dev/shm/count").split()
        return int(count), nonce, int(pid)

    count, nonce, pid = read(debian)
    debian.pause()
    debian.resume()
    (child,) = debian.fork()
    for sandbox in (debian, child):
        deadline = time.monotonic() + 20
        while (now := read(sandbox))[0] <= count:
            assert time.monotonic() < deadline
        assert now[1:] == (nonce, pid)


def test_random_numbers_of_programs_differ_in_forks(debian):
    children = debian.fork(2)
    numbers = [user(one, "python3 -c 'import secrets; print(secrets.token_hex(16))'") for one in [debian, *children]]
    assert len(set(numbers)) == 3
