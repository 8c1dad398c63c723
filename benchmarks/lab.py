"""Time of a message on a shaped link of the lab, compared with the time on a wire of the same rate.

Two hosts exchange one TCP message at a time; the receiver answers with a single byte. Needs root and iproute2.
`python -m benchmarks.lab [--json] [--quick]`, about 15 seconds.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

from benchmarks.report import Report, arguments
from orchestrator.lab.namespace import call, check_possible, delete, end_processes, namespaces
from orchestrator.lab.shaping import FRAME_NBYTES, network, shape
from orchestrator.lab.spec import LabDevice, LabSpec

PORT, WAIT_SECONDS = 5000, 20.0
RATES = {"1 MB/s": 1e6, "100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6}
SIZES = {"100 B": 100, "10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000}
# Header bytes and payload bytes of an Ethernet frame.
HEADER_NBYTES = 66
PAYLOAD_NBYTES = FRAME_NBYTES - HEADER_NBYTES


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        return _serve()
    if sys.argv[1:2] == ["send"]:
        return _send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    options = arguments(__doc__)
    check_possible()
    report = Report("lab")
    devices = (LabDevice("a", 0, 1e6), LabDevice("b", 1, 1e6))
    switch, hosts = "coedge-bench@switch", {"a": "coedge-bench.a", "b": "coedge-bench.b"}
    try:
        for command in network(LabSpec(devices, (), "a"), switch, hosts):
            call(command)
        serve = ["ip", "netns", "exec", hosts["b"], sys.executable, "-m", "benchmarks.lab", "serve"]
        with subprocess.Popen(serve, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline()
            for name, rate in RATES.items():
                for device in devices:
                    call(shape(hosts[device.name], "eth0", rate))
                    call(shape(switch, device.port, rate))
                for size, nbytes in SIZES.items():
                    count = str(3 if options.quick or nbytes / rate > 0.5 else 20)
                    send = [sys.executable, "-m", "benchmarks.lab", "send", devices[1].address, str(nbytes), count]
                    said = call(["ip", "netns", "exec", hosts["a"], *send], timeout_seconds=60.0)
                    taken = report.sample(f"{name}, {size}, s", [float(word) for word in said.split()])
                    wire = (nbytes + HEADER_NBYTES * -(-nbytes // PAYLOAD_NBYTES)) / rate
                    report.note(f"{name}, {size}: a wire", wire * 1e3, "ms")
                    report.note(f"{name}, {size}", taken * 1e3, "ms")
            server.kill()
    finally:
        there = [name for name in namespaces() if name in (switch, *hosts.values())]
        end_processes(there, lambda process: True)
        for name in there:
            delete(name)
    report.finish(options.json)
    return None


def _serve() -> None:
    with socket.create_server(("", PORT)) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                while len(head := connection.recv(8, socket.MSG_WAITALL)) == 8:
                    left = int.from_bytes(head, "big")
                    while left:
                        left -= len(connection.recv(min(left, 1 << 20)))
                    connection.sendall(b"!")


def _send(address: str, nbytes: int, count: int) -> None:
    """Print the seconds of each message. The token bucket is full at the start of each."""
    payload = (nbytes - 8).to_bytes(8, "big") + os.urandom(nbytes - 8)
    with socket.create_connection((address, PORT), timeout=WAIT_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for turn in range(count + 1):
            time.sleep(0.02)
            start = time.perf_counter()
            connection.sendall(payload)
            assert connection.recv(1)
            seconds = time.perf_counter() - start
            print(seconds if turn else "", flush=True)  # the first one is a warm-up


if __name__ == "__main__":
    main()
