"""The command line's promises: help, JSON, short ids, exit statuses, one clear line of error."""

import json

import pytest

from harness import Daemon, executable, run_process, without

VERBS = [
    "doctor", "template", "template build", "template ls", "template rm", "run", "ls", "info", "logs", "stats", "exec",
    "cp", "pause", "resume", "fork", "kill", "snapshot", "snapshot ls", "snapshot info", "snapshot rm",
    "snapshot inspect", "snapshot verify", "snapshot diff", "snapshot mount", "store", "store stats", "store gc",
    "store compact", "store verify", "dedup-report", "env",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_without_a_daemon(verb, directory):
    result = run_process([executable("dormouse"), *verb.split(), "--help"], env={"DORMOUSE_SOCKET": "/nonexistent"})
    result.expect(0)
    assert f"Usage: dormouse {verb} " in result.out
    assert "--json" in result.out
    assert result.error == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"], ["run", "--frobnicate"], ["run", "--memory"], ["run", "--memory", "many"], ["run", "extra"],
        ["info"], ["info", "a", "b"], ["exec", "a"], ["cp", "a", "b"], ["cp", "a:b", "c:d"], ["fork", "-n", "0", "a"],
        ["fork", "-n", "x", "a"], ["run", "--timeout", "soon"], ["run", "--env", "=x"], ["run", "--on-timeout", "sing"],
        ["template"], ["template", "frobnicate"], ["kill"], ["kill", "--all", "a"],
        ["exec", "-t", "--json", "a", "true"], ["snapshot", "inspect"], ["snapshot", "verify", "a", "b"],
        ["snapshot", "diff", "a"], ["snapshot", "mount", "a"], ["store"], ["store", "gc", "a"],
        ["dedup-report", "--memory", "many"],
    ],
)  # fmt: skip
def test_usage_errors_are_status_2_and_one_line(daemon, arguments):
    daemon.cli(*arguments).expect_failure("dormouse:", "--help", status=2)


@pytest.mark.parametrize("verb", ["info", "stats", "logs", "pause", "resume", "fork", "kill", "snapshot info",
                                  "snapshot inspect", "snapshot verify", "store compact"])  # fmt: skip
def test_an_unknown_id_is_one_clear_line(daemon, verb):
    daemon.cli(*verb.split(), "zzzzzzzz").expect_failure("there is no", "zzzzzzzz")


def template(daemon, name):
    """The one of that name; others may be there, since tests share a daemon."""
    (found,) = (t for t in daemon.json("template", "ls") if t["name"] == name)
    return found


def test_an_id_with_a_path_in_it_is_refused(daemon):
    daemon.cli("info", "../snapshots").expect_failure()
    daemon.cli("kill", "a/../../templates/tiny").expect_failure()
    assert template(daemon, "tiny")


def test_without_a_daemon_the_error_says_what_to_do(directory):
    nobody = Daemon(directory, "nobody")
    nobody.cli("ls").expect_failure("dormoused", str(nobody.socket))


def test_run_shows_the_promised_fields(daemon):
    info = daemon.json("run", "-t", "tiny", "--env", "A=b", "--metadata", "colour=red", "--timeout", "10m")
    assert info["state"] == "running"
    assert info["template"] == "tiny"
    assert info["snapshot"] == template(daemon, "tiny")["snapshot"]
    assert info["env"] == {"A": "b"}
    assert info["metadata"] == {"colour": "red"}
    assert info["cpus"] == 1 and info["memory_mib"] == 256
    assert info["on_timeout"] == "kill" and info["expires_at"] is not None
    assert daemon.vmm_pids() == {info["vmm_pid"]: info["id"]}
    timings = info["timings"]
    assert 0 < timings["spawned_us"] <= timings["running_us"] <= timings["agent_us"]
    shown = daemon.json("info", info["id"])
    assert {**shown, "timings": timings} == info


def test_run_prints_the_id_alone(daemon):
    out = daemon.cli("run", "-t", "tiny").expect(0).out
    assert out.strip() in daemon.list() and out.count("\n") == 1


def test_ls_lists_oldest_first(daemon):
    ids = [daemon.run().id for _ in range(3)]
    assert [info["id"] for info in daemon.json("ls")] == ids
    assert daemon.cli("ls", "-q").out.split() == ids
    table = daemon.cli("ls").out.splitlines()
    assert len(table) == 4 and all(identity[:12] in line for identity, line in zip(ids, table[1:]))


def test_ids_may_be_shortened_when_unambiguous(daemon):
    sandboxes = [daemon.run()]
    # Until two begin with the same letter; ids are random.
    while len({sandbox.id[0] for sandbox in sandboxes}) == len(sandboxes):
        assert len(sandboxes) <= 36
        sandboxes.append(daemon.run())
    initials = [sandbox.id[0] for sandbox in sandboxes]
    shared = next(initial for initial in initials if initials.count(initial) == 2)
    daemon.cli("info", shared).expect_failure("more than one")
    some = sandboxes[0]
    length = next(n for n in range(1, 21) if sum(s.id.startswith(some.id[:n]) for s in sandboxes) == 1)
    short = some.id[:length]
    assert daemon.json("info", short)["id"] == some.id
    daemon.cli("exec", short, "--", "true").expect(0)
    daemon.cli("pause", short).expect(0)
    daemon.cli("resume", short).expect(0)
    daemon.cli("kill", short).expect(0)
    assert some.id not in daemon.list()


def test_kill_takes_several_and_goes_on_after_a_failure(daemon):
    first, second = daemon.run(), daemon.run()
    result = daemon.cli("kill", first.id, "zzzzzz", second.id)
    result.expect_failure("zzzzzz")
    assert result.out.split() == [first.id, second.id]
    assert daemon.list() == {}


def test_stats_are_plausible(sandbox):
    stats = sandbox.stats()
    assert 0 < stats["private_bytes"] <= stats["vmm_rss_bytes"]
    assert stats["shared_bytes"] > 0 and stats["overlay_bytes"] >= 0
    sandbox.sh("dd if=/dev/urandom of=/root/written bs=64k count=4 2>/dev/null; sync")
    assert sandbox.stats()["overlay_bytes"] >= stats["overlay_bytes"] + (256 << 10)
    before = stats["cpu_ns"]
    sandbox.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    assert sandbox.stats()["cpu_ns"] > before


def test_logs_show_the_guests_console(sandbox):
    sandbox.sh("echo 'hello from the guest' > /dev/console")
    assert "hello from the guest" in sandbox.daemon.cli("logs", sandbox.id).expect(0).out
    limited = sandbox.daemon.cli("logs", "--limit", "10", sandbox.id).expect(0)
    assert len(limited.out_bytes) == 10


def test_env_can_be_evaluated_by_a_shell(daemon):
    script = (
        daemon.cli("env").expect(0).out + 'printf "%s\\n%s\\n%s\\n" "$E2B_API_URL" "$E2B_SANDBOX_URL" "$E2B_API_KEY"'
    )
    url, sandbox_url, key = run_process(["sh", "-c", script]).expect(0).out.split()
    assert url == sandbox_url == f"http://127.0.0.1:{daemon.port}"
    assert key.startswith("e2b_") and len(key) == 44


def test_templates_and_snapshots_are_listed(daemon):
    tiny = template(daemon, "tiny")
    assert tiny["memory_mib"] == 256
    (snapshot,) = (s for s in daemon.json("snapshot", "ls") if s["id"] == tiny["snapshot"])
    assert snapshot["in_use"]
    assert daemon.json("snapshot", "info", snapshot["id"][:8]) == snapshot
    daemon.cli("snapshot", "rm", snapshot["id"]).expect_failure("template")
    assert "tiny" in daemon.cli("template", "ls").out


SANDBOX = {
    "id", "state", "vmm_pid", "template", "template_id", "snapshot", "parent", "cpus", "memory_mib", "disk_bytes",
    "egress", "env", "metadata", "created_at", "started_at", "expires_at", "on_timeout", "auto_resume", "durable",
    "access_token", "timings", "capture",
}  # fmt: skip
TEMPLATE = {"id", "name", "snapshot", "cpus", "memory_mib", "disk_bytes", "created_at"}
SNAPSHOT = {
    "id", "sandbox", "template_id", "parent", "in_use", "cpus", "memory_mib", "created_at", "memory_bytes",
    "disk_bytes", "state_bytes", "stored_bytes", "own_bytes", "layers", "problem",
    "disk_consistency", "names", "checkpoint",
}  # fmt: skip


def test_json_has_the_documented_fields_and_no_others(daemon, tmp_path):
    """Whoever reads JSON by program relies on docs/cli.md."""
    sandbox = daemon.run()
    assert set(sandbox.info()) == SANDBOX
    assert set(sandbox.info()["timings"]) == {"spawned_us", "running_us", "agent_us"}
    assert set(sandbox.info()["capture"]) == {"stopped_us", "total_us", "bytes_private", "bytes_written"}
    assert set(daemon.json("ls")[0]) == SANDBOX
    assert set(sandbox.stats()) == {"private_bytes", "shared_bytes", "vmm_rss_bytes", "cpu_ns", "overlay_bytes"}
    assert set(daemon.json("logs", sandbox.id)) == {"id", "text"}
    outcome = sandbox.exec("true", options=["--json"]).json()
    assert set(outcome) == {"pid", "exit_status", "signal", "stdout", "stderr", "truncated"}
    copied = daemon.json("cp", f"{sandbox.id}:/etc/passwd", str(tmp_path / "passwd"))
    assert set(copied) == {"source", "destination", "files", "bytes", "skipped"}
    (forked,) = daemon.json("fork", sandbox.id)["results"]
    assert set(forked["sandbox"]) == SANDBOX
    assert set(sandbox.pause()) == SANDBOX
    assert set(daemon.json("snapshot", "ls")[0]) == SNAPSHOT
    assert set(sandbox.resume()) == SANDBOX | {"was_running"}
    assert daemon.json("kill", forked["sandbox"]["id"]).keys() >= {"id"}
    assert set(daemon.json("env")) == {"api_url", "sandbox_url", "api_key"}
    assert all(set(found) == TEMPLATE for found in daemon.json("template", "ls"))
    for check in daemon.json("doctor"):
        assert set(check) == {"name", "status", "detail", "remedy"} and check["status"] in ("ok", "warn", "fail")


def test_snapshots_that_nobody_needs_can_be_removed(sandbox):
    """A resumed sandbox holds what it maps of the snapshot that it came from."""
    snapshot = sandbox.pause()["snapshot"]
    sandbox.resume()
    assert sandbox.daemon.json("snapshot", "rm", snapshot) == {"id": snapshot}
    assert snapshot not in sandbox.daemon.listed_snapshots()
    sandbox.sh("echo 3 > /proc/sys/vm/drop_caches; ls -lR / >/dev/null 2>&1; true")
    sandbox.pause()
    sandbox.resume()
    assert sandbox.sh("echo on") == "on"


def test_doctor_finds_this_host_able(daemon):
    result = daemon.cli("doctor")
    result.expect(0)
    assert "qemu" in result.out.lower()
    assert json.loads(daemon.cli("doctor", "--json").expect(0).out)


def test_doctor_names_what_is_missing_with_its_remedy(daemon, tmp_path):
    result = run_process(
        [*without(tmp_path, "bin/qemu-system-x86_64"), executable("dormouse"), "doctor"], env=daemon.environment
    )
    result.expect(1)
    (line,) = [line for line in (result.out + result.error).splitlines() if "apt" in line and "qemu" in line]
    assert "install" in line
