"""What a guest reaches and what it doesn't."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from harness import listen, run_process, wait_until

PATIENCE = 2  # seconds in which a guest must not get through


@pytest.fixture
def answering():
    """Makes servers that answer one word to whoever connects: answering(listener, word)."""
    listeners = []

    def serve(listener, word):
        listener.settimeout(None)
        listeners.append(listener)

        def loop():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(word.encode())

        threading.Thread(target=loop, daemon=True).start()
        return listener.getsockname()[1]

    yield serve
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def reach_all(sandbox, targets):
    """What connections from the guest to (address, port) pairs bring: pair → text, "" when there is none."""
    targets = list(targets)
    script = "cd /tmp\n" + "".join(
        f"timeout {PATIENCE} nc {address} {port} </dev/null >reached-{number} 2>/dev/null &\n"
        for number, (address, port) in enumerate(targets)
    )
    script += f"wait\nfor i in $(seq 0 {len(targets) - 1}); do echo :$(cat reached-$i); done\n"
    return dict(zip(targets, [line[1:] for line in sandbox.sh(script).splitlines()], strict=True))


def reach(sandbox, address, port):
    return reach_all(sandbox, [(address, port)])[address, port]


def expect_unreached(sandbox, addresses, ports):
    reached = reach_all(sandbox, [(address, port) for address in addresses for port in ports])
    assert not any(reached.values()), f"the guest reached {reached}"


def host_addresses():
    interfaces = json.loads(run_process(["ip", "-json", "-4", "addr"]).expect(0).out)
    return [address["local"] for interface in interfaces for address in interface["addr_info"]]


def network_inode(pid):
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def namespace_of(sandbox):
    inode = network_inode(sandbox.info()["vmm_pid"])
    (name,) = [path.name for path in Path("/run/netns").glob("dormouse-*") if path.stat().st_ino == inode]
    return name


def test_the_outside_is_reached(sandbox, outside, answering):
    port = answering(outside.listen(), "outside")
    assert reach(sandbox, outside.ADDRESS, port) == "outside"
    sandbox.pause()
    sandbox.resume()
    assert reach(sandbox, outside.ADDRESS, port) == "outside"
    (child,) = sandbox.fork()
    assert reach(child, outside.ADDRESS, port) == "outside"
    assert reach(sandbox, outside.ADDRESS, port) == "outside"


def test_no_internet_means_none(daemon, outside, answering):
    port = answering(outside.listen(), "outside")
    denied = daemon.run("--no-internet")
    assert reach(denied, outside.ADDRESS, port) == ""
    denied.pause()
    denied.resume()
    assert reach(denied, outside.ADDRESS, port) == ""
    (child,) = denied.fork()
    assert reach(child, outside.ADDRESS, port) == ""
    assert reach(daemon.run(), outside.ADDRESS, port) == "outside"


def test_no_address_of_the_host_is_reached(sandbox, outside, answering):
    """Neither a server on all addresses nor the daemon itself; the same server is reached from the host."""
    port = answering(listen("0.0.0.0"), "host")
    addresses = host_addresses()
    assert outside.HOST_ADDRESS in addresses and "127.0.0.1" in addresses
    with socket.create_connection((outside.HOST_ADDRESS, port), timeout=5) as connection:
        assert connection.recv(10) == b"host"
    # Its own loopback addresses are not the host's; those of its namespace, on the way to the host, are.
    inside = json.loads(run_process(["ip", "-n", namespace_of(sandbox), "-json", "-4", "addr"]).expect(0).out)
    addresses += [entry["local"] for interface in inside for entry in interface["addr_info"]]
    expect_unreached(sandbox, [a for a in addresses if not a.startswith("127.")], [port, sandbox.daemon.port])


def test_no_other_guest_is_reached(daemon):
    one, other = daemon.run(), daemon.run()
    other.sh("setsid sh -c 'while :; do echo other | nc -l -p 5000; done' >/dev/null 2>&1 & "
             "until netstat -ltn | grep -q :5000; do usleep 20000; done")  # fmt: skip
    # The server answers, so it is the way that is blocked: its own guest reaches it.
    assert reach(other, "169.254.77.2", 5000) == "other"
    wait_until(lambda: "5000" in other.sh("netstat -ltn"), "listening again")
    interfaces = json.loads(run_process(["ip", "-n", namespace_of(other), "-json", "-4", "addr"]).expect(0).out)
    addresses = {entry["local"] for interface in interfaces for entry in interface["addr_info"]} - {"127.0.0.1"}
    assert len(addresses) >= 2  # the guest's gateway and the namespace's own
    expect_unreached(one, addresses, [5000, 49983])


def test_every_guest_has_the_same_addresses(daemon):
    guests = [daemon.run(), daemon.run()]
    seen = {
        guest.sh("ip -o addr show dev eth0 | grep -o 'inet [^ ]*'; cat /sys/class/net/eth0/address") for guest in guests
    }
    assert seen == {"inet 169.254.77.2/30\n02:00:5e:00:00:02"}


def test_a_sandboxs_network_goes_with_it(sandbox):
    daemon = sandbox.daemon
    name = namespace_of(sandbox)
    assert name.removeprefix("dormouse-") in [str(slot) for slot in daemon.slots()]
    interface = name.replace("dormouse-", "dmh")
    assert Path(f"/sys/class/net/{interface}").exists()
    sandbox.kill()
    wait_until(lambda: not Path(f"/run/netns/{name}").exists(), "the namespace's removal")
    wait_until(lambda: not Path(f"/sys/class/net/{interface}").exists(), "the interface's removal")


def test_a_paused_one_holds_no_network(sandbox):
    name = namespace_of(sandbox)
    sandbox.pause()
    wait_until(lambda: not Path(f"/run/netns/{name}").exists(), "the namespace's removal")


def test_many_connections_and_a_lot_of_data_pass_the_proxy(sandbox):
    """The way in: a server in the guest, reached through the daemon's port by the sandbox' host name."""
    sandbox.sh("mkdir /tmp/www; dd if=/dev/urandom of=/tmp/www/data bs=1M count=4 2>/dev/null; "
               "httpd -p 8000 -h /tmp/www; until netstat -ltn | grep -q :8000; do usleep 20000; done")  # fmt: skip
    expected = sandbox.sh("md5sum < /tmp/www/data").split()[0]
    url = f"http://127.0.0.1:{sandbox.daemon.port}/data"
    host = f"Host: 8000-{sandbox.id}.localhost"
    fetch = f"curl -sS --fail -H '{host}' {url} | md5sum"
    results = [run_process(["sh", "-c", fetch]).expect(0).out.split()[0] for _ in range(5)]
    assert results == [expected] * 5
