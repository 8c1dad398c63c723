"""The answer of a gRPC server to one empty call: its status only, such as 16 for a token that is wrong or missing.

Ray itself repeats a call that is refused for many seconds, without a word about the reason. The call here is made of
the frames of HTTP/2 (RFC 9113) and of headers without compression (RFC 7541):

    client   preface, settings, headers, 5 bytes of an empty message
    server   ... 0 or @, 11, "grpc-status", 1 or 2, "0" or "16" ...
"""

from __future__ import annotations

import re
import socket
import time

from orchestrator.control.ray_address import EMPTY_SETTINGS, PREFACE, with_tls

OK, UNAUTHENTICATED = 0, 16
_HEADERS, _DATA, _END_HEADERS, _END_STREAM = 1, 0, 4, 1
# Indices of the static table of headers: whole headers, and names whose values follow.
_POST, _HTTP, _PATH, _AUTHORITY = b"\x83", b"\x86", b"\x04", b"\x01"
_CONTENT_TYPE, _AUTHORIZATION, _NEW_NAME = b"\x0f\x10", b"\x0f\x08", b"\x00"
_STATUS = re.compile(rb"\x0bgrpc-status(?:\x01([0-9])|\x02([0-9]{2}))")
_MOST_NBYTES = 65_536


def grpc_status(address: str, path: str, token: str | None, seconds: float) -> int | None:
    """Return the status with which the server at `host:port` answers an empty call.

    Args:
        path: of the method, such as "/ray.rpc.NodeInfoGcsService/GetClusterId".
        token: sent along; None: none is sent.

    Returns:
        None: the server answered nothing that looks like gRPC within `seconds`.
    """
    host, _, port = address.rpartition(":")
    deadline, answer = time.monotonic() + seconds, b""
    try:
        with with_tls(socket.create_connection((host.strip("[]"), int(port)), timeout=max(seconds, 0.001))) as server:
            server.sendall(_request(address, path, token))
            while (left := deadline - time.monotonic()) > 0 and len(answer) < _MOST_NBYTES:
                server.settimeout(left)
                more = server.recv(4096)
                answer += more
                if found := _STATUS.search(answer):
                    return int(found[1] or found[2])
                if not more:
                    break
    except (OSError, ValueError):
        return None
    return None


def _request(address: str, path: str, token: str | None) -> bytes:
    def text(value: str) -> bytes:
        raw = value.encode()
        return _length(len(raw)) + raw

    headers = _POST + _HTTP + _PATH + text(path) + _AUTHORITY + text(address)
    headers += _CONTENT_TYPE + text("application/grpc") + _NEW_NAME + text("te") + text("trailers")
    if token is not None:
        headers += _AUTHORIZATION + text(f"Bearer {token}")
    call = _frame(_HEADERS, _END_HEADERS, headers) + _frame(_DATA, _END_STREAM, bytes(5))
    return PREFACE + EMPTY_SETTINGS + call


def _length(nbytes: int) -> bytes:
    """Return a length of a text that is not Huffman coded: 7 bits, and more bytes of 7 bits if they do not suffice."""
    if nbytes < 127:
        return bytes([nbytes])
    out, rest = bytearray([127]), nbytes - 127
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest])


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + (1).to_bytes(4, "big") + payload
