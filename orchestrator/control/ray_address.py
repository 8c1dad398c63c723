"""A quick check that the server at an address may be a Ray head.

Ray itself tries for minutes, and cannot be interrupted, where something else than a Ray head answers. A Ray head speaks
gRPC, which is carried by HTTP/2. Both sides of HTTP/2 begin with a frame of settings (RFC 9113, section 3.4), so an
empty frame of ours brings a frame of the server within one round trip:

    client   PRI * HTTP/2.0 CR LF CR LF SM CR LF CR LF   length 0, type 4, flags 0, stream 0
    server                                               length n, type 4, flags 0, stream 0, n bytes
"""

from __future__ import annotations

import os
import socket
import ssl
import time

from coedge.core.errors import ClusterError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HEADER_NBYTES, TYPE_OFFSET, SETTINGS = 9, 3, 4
# A Ray head answers within a round trip. A slow radio link or a busy board takes a second or two.
MOST_SECONDS = 10.0


def check_ray_address(address: str, seconds: float) -> None:
    """Check that a server at `host:port` answers as Ray does, within `seconds` and at most `MOST_SECONDS`.

    Raises:
        ClusterError: nothing answers there, or something else.
    """
    host, _, port = address.rpartition(":")
    host, seconds = host.strip("[]"), min(seconds, MOST_SECONDS)
    deadline = time.monotonic() + seconds
    try:
        connection = socket.create_connection((host, int(port)), timeout=seconds)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error}. Is `ray start --head --port={port}` running on "
            f"{host}, and is the port open? Leave out ray.address to start a local cluster"
        ) from error
    with connection:
        problem = _problem(connection, deadline, seconds)
    if problem:
        raise ClusterError(
            f"what answers at {address} is not a Ray head: {problem}. Give the address that `ray start --head` printed "
            f"(port 6379 by default); if it is this one, the Ray on {host} hangs: run `ray stop` and start it again. "
            "Leave out ray.address to start a local cluster"
        )


def _problem(connection: socket.socket, deadline: float, seconds: float) -> str | None:
    """Return how an answer differs from that of a Ray head; None if it does not."""
    answer = b""
    try:
        connection = with_tls(connection)
        connection.sendall(PREFACE + EMPTY_SETTINGS)
        while len(answer) < HEADER_NBYTES and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            more = connection.recv(HEADER_NBYTES - len(answer))
            if not more:
                return f"it closed the connection{_after(answer)}"
            answer += more
    except TimeoutError:
        pass
    except OSError as error:
        return f"it ended the connection{_after(answer)} ({error})"
    finally:
        connection.close()
    if len(answer) < HEADER_NBYTES:
        return f"it accepted the connection and then sent nothing{_after(answer)} within {seconds:g} s"
    return None if answer[TYPE_OFFSET] == SETTINGS else f"it sent {answer!r}"


def _after(answer: bytes) -> str:
    return f" after {answer!r}" if answer else ""


def with_tls(connection: socket.socket) -> socket.socket:
    """Return the connection, with TLS where Ray's environment variables ask for it. Ray itself checks certificates."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return connection
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    certificate, key = (os.environ.get(f"RAY_TLS_SERVER_{part}") for part in ("CERT", "KEY"))
    if certificate and key:
        context.load_cert_chain(certificate, key)
    return context.wrap_socket(connection)
