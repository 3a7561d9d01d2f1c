"""Commands in a guest: streams, exit status, terminal, user, environment."""

import fcntl
import hashlib
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

from harness import wait_until


def test_stdout_stderr_and_status_are_the_commands_own(sandbox):
    result = sandbox.exec("sh", "-c", "echo to out; echo to err >&2; exit 42")
    result.expect(42)
    assert (result.out, result.error) == ("to out\n", "to err\n")


def test_the_command_is_run_without_a_shell(sandbox):
    assert sandbox.exec("echo", "$HOME; echo x", "a  b").expect(0).out == "$HOME; echo x a  b\n"


def test_a_command_that_is_not_found_is_127_and_one_that_cannot_run_126(sandbox):
    sandbox.exec("no-such-command").expect_failure("no-such-command", status=127)
    sandbox.sh("echo x > /home/user/plain; chmod 644 /home/user/plain")
    sandbox.exec("/home/user/plain").expect_failure("/home/user/plain", status=126)


def test_death_by_a_signal_is_128_and_its_number(sandbox):
    assert sandbox.exec("sh", "-c", "kill -TERM $$").status == 128 + signal.SIGTERM
    assert sandbox.exec("sh", "-c", "kill -KILL $$").status == 128 + signal.SIGKILL


def test_stdin_reaches_the_command_and_ends(sandbox):
    data = os.urandom(3 << 20)
    result = sandbox.exec("sha256sum", data=data).expect(0)
    assert result.out.split()[0] == hashlib.sha256(data).hexdigest()


def test_without_i_stdin_is_empty(sandbox):
    result = sandbox.daemon.cli("exec", sandbox.id, "--", "cat", data=b"must not arrive").expect(0)
    assert result.out == ""


def test_a_lot_of_output_arrives_whole(sandbox):
    result = sandbox.exec("sh", "-c", "seq 1 300000; seq 1 1000 >&2").expect(0)
    assert result.out == "".join(f"{n}\n" for n in range(1, 300001))
    assert result.error == "".join(f"{n}\n" for n in range(1, 1001))


def test_output_arrives_while_the_command_runs(sandbox):
    process = sandbox.daemon.popen(
        "exec", "-i", sandbox.id, "--", "sh", "-c", "echo ready; read line; echo got $line",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(b"this\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"got this\n"
    assert process.wait(timeout=20) == 0
    process.stdin.close()
    process.stdout.close()


def test_user_directory_and_environment(daemon):
    sandbox = daemon.run("--env", "FROM_RUN=one", "--env", "BOTH=run")
    script = "id -un; pwd; echo $FROM_RUN $BOTH $HERE; echo $HOME $USER"
    default = sandbox.exec("sh", "-c", script, options=["-e", "BOTH=exec", "-e", "HERE=a b=c"]).expect(0)
    assert default.out == "user\n/home/user\none exec a b=c\n/home/user user\n"
    root = sandbox.exec("sh", "-c", script, options=["-u", "root", "-w", "/tmp"]).expect(0)
    assert root.out == "root\n/tmp\none run\n/root root\n"
    sandbox.exec("true", options=["-u", "nobody-here"]).expect_failure("nobody-here")
    sandbox.exec("true", options=["-w", "/no/such"]).expect_failure("/no/such")


def test_json_holds_everything_at_the_end(sandbox):
    result = sandbox.exec("sh", "-c", "echo out; echo err >&2; exit 3", options=["--json"]).expect(3)
    outcome = json.loads(result.out)
    assert (outcome["exit_status"], outcome["stdout"], outcome["stderr"]) == (3, "out\n", "err\n")
    assert outcome["pid"] > 1 and not outcome["truncated"]


class Terminal:
    """`dormouse exec -it` on a terminal of our own, as a user's terminal emulator has it."""

    def __init__(self, sandbox, *command, size=(33, 101)):
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.process = sandbox.daemon.popen(
            "exec", "-i", "-t", sandbox.id, "--", *command,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def write(self, text):
        os.write(self.master, text.encode())

    def read_until(self, text, seconds=30):
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} was not seen within {seconds} s in {self.seen!r}"
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the terminal ended before {text!r} was seen in {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_a_terminal_has_the_windows_size_and_follows_it(sandbox):
    terminal = Terminal(sandbox, "sh", "-c", "tty; while :; do stty size; sleep 0.1; done")
    try:
        assert "/dev/pts/" in terminal.read_until("33 101")
        terminal.resize(24, 80)
        terminal.read_until("24 80")
    finally:
        terminal.close()


def test_ctrl_c_on_a_terminal_interrupts_the_command(sandbox):
    terminal = Terminal(
        sandbox, "sh", "-c", "trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 1; done"
    )
    try:
        terminal.read_until("ready")
        terminal.write("\x03")
        terminal.read_until("interrupted")
        assert terminal.process.wait(timeout=20) == 7
    finally:
        terminal.close()


def test_the_users_terminal_is_restored(sandbox):
    terminal = Terminal(sandbox, "sh", "-c", "echo ready; read line")
    try:
        terminal.read_until("ready")
        during = termios.tcgetattr(terminal.master)
        assert not during[3] & termios.ECHO, "while the command runs, the terminal is raw"
        terminal.write("\r")
        assert terminal.process.wait(timeout=20) == 0
        after = termios.tcgetattr(terminal.master)
        assert after[3] & termios.ECHO and after[3] & termios.ICANON
    finally:
        terminal.close()


def test_a_signal_to_the_client_ends_the_command(sandbox):
    process = sandbox.daemon.popen(
        "exec", sandbox.id, "--", "sh", "-c", "echo ready; exec sleep 1000", stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    process.stdout.close()
    wait_until(lambda: sandbox.exec("pidof", "sleep").status == 1, "the end of the command")


def test_a_client_that_is_killed_leaves_the_command_running(sandbox):
    process = sandbox.daemon.popen(
        "exec", sandbox.id, "--", "sh", "-c", "echo ready; exec sleep 1000", stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    process.stdout.close()
    sandbox.exec("pidof", "sleep").expect(0)


def test_many_commands_at_once(sandbox):
    processes = [
        sandbox.daemon.popen("exec", sandbox.id, "--", "sh", "-c", f"echo {n}; exit {n}", stdout=subprocess.PIPE)
        for n in range(16)
    ]
    for number, process in enumerate(processes):
        assert process.communicate(timeout=60)[0] == f"{number}\n".encode()
        assert process.returncode == number
