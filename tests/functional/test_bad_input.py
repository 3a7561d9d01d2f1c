"""Bad input: a clear error, a bounded time, nothing lost, no other sandbox touched."""

import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from guest import Counter
from harness import Daemon, Sandbox, executable, run_process, wait_until, without


# ---- VMMs that don't answer: the end of this is the last test ----


@pytest.fixture(scope="module", autouse=True)
def frozen(directory, seed):
    """Sandboxes whose VMMs are stopped (SIGSTOP), and a call on each. The calls take a minute to fail: they begin
    before the first test of this module and are looked at by the last."""
    daemon = Daemon(directory, "frozen", seed).start()
    sandboxes = {verb: daemon.run() for verb in ("exec", "pause", "fork", "cp", "stats", "logs", "kill")}
    bystander = daemon.run()
    for sandbox in sandboxes.values():
        os.kill(sandbox.info()["vmm_pid"], signal.SIGSTOP)
    arguments = {verb: [verb, sandbox.id] for verb, sandbox in sandboxes.items()}
    arguments["exec"] += ["--", "true"]
    arguments["cp"] = ["cp", "/etc/hostname", f"{sandboxes['cp'].id}:/tmp/x"]
    outcomes = {}

    def call(verb):
        began = time.monotonic()
        outcomes[verb] = (daemon.cli(*arguments[verb], seconds=150), time.monotonic() - began)

    threads = [threading.Thread(target=call, args=[verb]) for verb in sandboxes]
    for thread in threads:
        thread.start()
    yield daemon, bystander, sandboxes, threads, outcomes
    for thread in threads:
        thread.join()
    daemon.dispose()


def test_others_are_not_touched_while_calls_on_frozen_ones_wait(frozen):
    daemon, bystander, sandboxes, _, _ = frozen
    began = time.monotonic()
    assert bystander.sh("echo on") == "on"
    bystander.pause()
    bystander.resume()
    bystander.fork(2)
    assert set(sandboxes[verb].id for verb in sandboxes if verb != "kill") < set(daemon.list())
    assert time.monotonic() - began < 30


# ---- arguments ----


@pytest.mark.parametrize(
    "options",
    [
        ["--memory", "1M"], ["--memory", "4096G"], ["--memory", "99999999999999999999G"], ["--memory", "-1"],
        ["--cpus", "33"], ["--cpus", "4294967297"], ["--cpus", "-1"], ["--timeout", "99999999999d"],
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused(daemon, options):
    result = daemon.cli("run", "-t", "tiny", *options)
    assert result.status in (1, 2)
    result.expect_failure("dormouse:", status=result.status)
    assert daemon.list() == {} and daemon.vmm_pids() == {}


@pytest.mark.parametrize(
    "body",
    [
        {"template": "tiny", "memory_mib": 10**12}, {"template": "tiny", "memory_mib": -1}, {"template": 5},
        {"template": "tiny", "cpus": 1000}, {"template": "tiny", "env": {"A=B": "c"}}, {"template": "tiny", "env": []},
        {"template": "tiny", "unknown": 1}, {"template": "tiny", "on_timeout": "explode"}, [], "tiny", 5, None,
        {"template": "../../etc"}, {"template": "x" * 100000}, {"template": "tiny", "env": {"A": "nul\0byte"}},
        {"template": "tiny", "env": {f"K{n}": "v" for n in range(1000)}}, {"template": "tiny", "env": {"": "x"}},
    ],
)  # fmt: skip
def test_absurd_requests_are_refused(daemon, body):
    status, answer = daemon.http("POST", "/dormouse/v1/sandboxes", body)
    assert status in (400, 404), answer
    assert answer["code"] == status and answer["message"], answer
    assert daemon.list() == {}


def test_a_key_is_demanded(daemon):
    for key in ("", "e2b_0000", "wrong"):
        status, body = daemon.http("GET", "/v2/sandboxes", key=key)
        assert status == 401 and body["code"] == 401
    assert daemon.http("GET", "/v2/sandboxes")[0] == 200


def test_wrong_states_are_conflicts(daemon):
    sandbox = daemon.run()
    sandbox.pause()
    for path in ("pause", "timeout"):
        status, body = daemon.http(
            "POST", f"/sandboxes/{sandbox.id}/{path}", {"timeout": 10} if path == "timeout" else {}
        )
        assert status == 409 and body["code"] == 409, body
    assert sandbox.state() == "paused"
    status, body = daemon.http("POST", "/sandboxes/zzzzzz/pause", {})
    assert status == 404 and body["code"] == 404


def test_calls_on_one_sandbox_at_once_never_race(daemon):
    """Any order is right, as long as each call either works or says why not, and the end is a state of rest."""
    sandbox = daemon.run()
    counter = Counter(sandbox)
    state = counter.read()
    verbs = ["pause", "resume", "fork", "pause", "resume", "stats", "pause", "resume"]
    processes = [daemon.popen(verb, sandbox.id, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for verb in verbs]
    for process in processes:
        _, error = process.communicate(timeout=90)
        assert process.returncode == 0 or b"paused" in error or b"cancelled" in error, error
    daemon.expect_consistent()
    sandbox.resume()
    counter.wait_beyond(state)


def test_two_kills_at_once(daemon):
    sandbox = daemon.run()
    processes = [daemon.popen("kill", sandbox.id, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    outcomes = [(process.communicate(timeout=60), process.returncode) for process in processes]
    assert [status for _, status in outcomes].count(0) >= 1
    assert daemon.list() == {}


# ---- missing packages ----


@pytest.mark.parametrize(
    "program, package",
    [("bin/qemu-system-x86_64", "qemu-system-x86"), ("sbin/mke2fs", "mke2fs")],
)
def test_a_missing_package_is_named(new_daemon, tmp_path, program, package):
    daemon = new_daemon(wrapper=without(tmp_path, program))
    line = build_failure(daemon, "--recipe", "tiny", "--memory", "128M")
    assert package in line and ("install" in line or "make packages" in line), line
    daemon.expect_clean()


# ---- templates ----


def test_a_template_that_is_not_there(daemon):
    daemon.cli("run", "-t", "nonesuch").expect_failure("nonesuch", "template build")
    daemon.cli("template", "rm", "nonesuch").expect_failure("nonesuch")
    daemon.cli("template", "build", "x", "--recipe", "nonesuch").expect(1)
    daemon.cli("template", "build", "x", "--rootfs", "/no/such/path").expect_failure("/no/such/path")
    daemon.cli("template", "build", "Not A Name").expect(2)


def build_failure(daemon, *options):
    """The last line of a template build that fails."""
    result = daemon.cli("template", "build", "broken", *options, seconds=300).expect(1)
    line = result.error.splitlines()[-1]
    assert line.startswith("dormouse: ")
    return line


def test_a_rootfs_of_garbage(daemon, tmp_path):
    garbage = tmp_path / "garbage"
    garbage.write_bytes(os.urandom(1 << 20))
    assert str(garbage) in build_failure(daemon, "--rootfs", garbage)
    (tmp_path / "empty").mkdir()
    assert "/bin/sh" in build_failure(daemon, "--rootfs", tmp_path / "empty")
    assert [template["name"] for template in daemon.json("template", "ls")] == ["tiny"]


def test_a_file_system_that_is_damaged(daemon, tmp_path):
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    run_process(["mke2fs", "-q", "-F", "-t", "ext4", image]).expect(0)
    with open(image, "r+b") as file:
        file.seek(1024 + 1024)
        file.write(os.urandom(300000))
    assert "damaged" in build_failure(daemon, "--rootfs", image)


def test_a_rootfs_that_does_not_fit(daemon, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").write_bytes(os.urandom(20 << 20))
    assert "larger size" in build_failure(daemon, "--rootfs", tmp_path, "--size", "16M")


def test_a_rootfs_that_does_not_boot(daemon, tmp_path):
    """Its programs are garbage; the agent needs none of them, so it may even come up: either is a clear outcome."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").write_bytes(b"garbage")
    (tmp_path / "proc").write_text("a file where the guest needs a directory")
    line = build_failure(daemon, "--rootfs", tmp_path, "--size", "16M", "--memory", "128M")
    assert "boot" in line and "console" in line


def test_a_kernel_that_panics_is_found_out_soon(new_daemon):
    """The guest's end is the build's end, with what the guest said last, not a timeout."""
    daemon = new_daemon()
    replace_initrd(daemon, b"this is no initrd")
    began = time.monotonic()
    line = build_failure(daemon, "--recipe", "tiny", "--memory", "128M")
    assert "boot" in line
    assert time.monotonic() - began < 60
    daemon.expect_clean()


def replace_initrd(daemon, content):
    """Gives the daemon kernels of its own, with another initrd."""
    shared = (daemon.data / "kernels").resolve()
    if (daemon.data / "kernels").is_symlink():
        (daemon.data / "kernels").unlink()
        shutil.copytree(shared, daemon.data / "kernels")
    (newest,) = [path for path in (daemon.data / "kernels").glob("*/initrd-*") if is_current(path)]
    newest.unlink()
    newest.write_bytes(content)


def is_current(initrd):
    """Of several initrds in the cache, the one that is made from the agent under test holds it."""
    return executable("dormouse-agent").read_bytes() in initrd.read_bytes()


def test_a_build_that_is_interrupted_leaves_nothing(daemon):
    client = daemon.popen("template", "build", "interrupted", "--recipe", "tiny", stderr=subprocess.PIPE)
    for line in client.stderr:
        if b"booting" in line:
            break
    client.send_signal(signal.SIGINT)
    client.wait(timeout=20)
    client.stderr.close()
    daemon.expect_clean(seconds=60)
    assert [template["name"] for template in daemon.json("template", "ls")] == ["tiny"]
    # The next build doesn't wait for it, and a second one at the same time is refused.
    first = daemon.popen("template", "build", "two", "--recipe", "tiny", stderr=subprocess.PIPE)
    for line in first.stderr:
        if b"booting" in line:
            break
    assert "another template" in build_failure(daemon, "--recipe", "tiny")
    first.stderr.close()
    assert first.wait(timeout=60) == 0
    daemon.cli("template", "rm", "two").expect(0)


def test_templates_from_a_directory_and_an_archive(daemon, directory, tmp_path):
    tree = next((daemon.data / "cache").glob("tiny-*/tree"))
    archive = tmp_path / "tree.tar.gz"
    run_process(["tar", "-C", tree, "-czf", archive, "."]).expect(0)
    for name, source in (("from-directory", tree), ("from-archive", archive)):
        daemon.build(name, "--rootfs", source, "--size", "48M", "--memory", "128M")
        sandbox = daemon.run(template=name)
        assert int(sandbox.sh("df -k / | awk 'NR==2 {print $2}'")) < 48 * 1024
        assert sandbox.info()["memory_mib"] == 128
        daemon.cli("template", "rm", name).expect(0)
        assert sandbox.sh("echo on") == "on", "a sandbox outlives its template"


def test_a_rebuilt_template_replaces_the_old_one(daemon):
    daemon.build("again", "--recipe", "tiny", "--memory", "128M")
    old = daemon.run(template="again")
    (before,) = [template for template in daemon.json("template", "ls") if template["name"] == "again"]
    daemon.build("again", "--recipe", "tiny", "--memory", "160M")
    (after,) = [template for template in daemon.json("template", "ls") if template["name"] == "again"]
    assert after["id"] != before["id"] and after["memory_mib"] == 160
    assert old.sh("echo on") == "on"
    old.pause()
    old.resume()
    assert daemon.run(template="again").info()["memory_mib"] == 160
    daemon.cli("template", "rm", "again").expect(0)


# ---- guests and VMMs that fail ----


def test_a_vmm_that_is_killed_is_lost_with_a_reason(daemon):
    victim, bystander = daemon.run(), daemon.run()
    os.kill(victim.info()["vmm_pid"], signal.SIGKILL)
    wait_until(lambda: victim.state() == "lost", "the loss being noticed")
    info = victim.info()
    assert info["lost_reason"] and info["vmm_pid"] is None
    for verb in ("pause", "resume", "fork", "stats"):
        daemon.cli(verb, victim.id).expect_failure("lost")
    victim.exec("true").expect_failure("lost")
    assert bystander.sh("echo on") == "on"
    victim.kill()
    daemon.expect_consistent()


def test_a_guest_that_powers_off_is_lost_with_a_reason(daemon):
    sandbox = daemon.run()
    sandbox.exec("sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60", options=["-u", "root"])
    wait_until(lambda: sandbox.state() == "lost", "the end being noticed")
    assert "powered off" in sandbox.info()["lost_reason"]


def test_a_guest_that_panics_is_lost_with_a_reason(daemon):
    sandbox = daemon.run()
    sandbox.exec("sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60", options=["-u", "root"])
    wait_until(lambda: sandbox.state() == "lost", "the end being noticed")


def test_calls_on_a_frozen_one_end_with_an_error(frozen):
    daemon, _, sandboxes, threads, outcomes = frozen
    for thread in threads:
        thread.join()
    for verb in ("exec", "pause", "fork", "cp"):
        result, seconds = outcomes[verb]
        result.expect_failure("dormouse:")
        assert seconds < 120, f"{verb} took {seconds:.0f} s"
    for verb in ("stats", "logs", "kill"):
        result, seconds = outcomes[verb]
        result.expect(0)
        assert seconds < 15
    # None is lost by that: when it goes on, so does everything.
    for verb in ("exec", "pause", "fork", "cp"):
        info = sandboxes[verb].info()
        assert info["state"] == "running", (verb, info)
        os.kill(info["vmm_pid"], signal.SIGCONT)
    for verb in ("exec", "pause", "fork", "cp"):
        sandbox = Sandbox(daemon, sandboxes[verb].id)
        assert sandbox.sh("echo on") == "on", verb
        sandbox.pause()
        sandbox.resume()
        assert sandbox.sh("echo on") == "on", verb
