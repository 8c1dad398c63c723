"""Ray's token authentication: whether a head and its nodes want the token that this process sends, or none.

With RAY_AUTH_MODE=token a process of Ray sends a token and wants it from others. Ray reads it from RAY_AUTH_TOKEN, else
from the file RAY_AUTH_TOKEN_PATH, else from ~/.ray/auth_token. All processes of a cluster have to agree.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from coedge.core.errors import ClusterError
from orchestrator.control.grpc_status import OK, UNAUTHENTICATED, grpc_status

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
HEAD_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
NODE_CALL = "/ray.rpc.NodeManagerService/GetSystemConfig"
# A Ray process answers within a round trip.
ANSWER_SECONDS = 3.0
# Folders of the tokens of clusters that CoEdge started; see `private_token`.
FOLDER_PREFIX, TOKEN_NAME, ADDRESS_NAME = "coedge-token-", "auth_token", "address"


def mode() -> str | None:
    """Return the mode that the environment sets, in small letters. None: none is set."""
    found = os.environ.get(MODE)
    return None if found is None else found.lower()


def own_token() -> tuple[str | None, str]:
    """Return the token that Ray would send from here, None if there is none, and where it is read from."""
    if os.environ.get(TOKEN):
        return os.environ[TOKEN].strip(), TOKEN
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None, str(path)
    except (OSError, ValueError):
        return None, str(path)


def check_token(address: str, automatic: bool, seconds: float = ANSWER_SECONDS) -> bool:
    """Check that the head at an address takes what this process sends: its token, or none.

    Args:
        automatic: whether Ray looks for the head itself (address "auto", and no RAY_ADDRESS). If no mode is set, it
            sends a token then, if there is one; this function sets the mode for heads that have no token.

    Returns:
        Whether a Ray head answered that takes it.

    Raises:
        ClusterError: it does not; the message has the command that mends it.
    """
    if mode() not in (None, "", "disabled", "token"):
        return False
    status = grpc_status(address, HEAD_CALL, None, seconds)
    token, source = own_token()
    if status == OK and mode() == "token":
        raise ClusterError(
            f"the Ray head at {address} was started without a token, but this process sends one ({MODE}=token), so "
            f"that no worker would start. Run `export {MODE}=disabled`, or start the head again with "
            f"`{MODE}=token ray start --head`"
        )
    if status == OK and automatic and not mode():
        os.environ[MODE] = "disabled"  # `private_token.KeptEnvironment` restores it
    if status != UNAUTHENTICATED:
        return status == OK
    sends = mode() == "token" or (automatic and not mode())
    if not sends:
        raise ClusterError(
            f"the Ray head at {address} wants a token, and this process sends none. Run `export {MODE}=token`"
            f"{_how_to_get(address, token, source)}"
        )
    if token is None:
        raise ClusterError(
            f"the Ray head at {address} wants a token, and there is none in {source}. Run `export {MODE}=token`"
            f"{_how_to_get(address, None, source)}"
        )
    status = grpc_status(address, HEAD_CALL, token, seconds)
    if status == UNAUTHENTICATED:
        raise ClusterError(
            f"the Ray head at {address} wants another token than that of {source}. Run `export {MODE}=token`"
            f"{_how_to_get(address, None, source)}"
        )
    return status == OK


def alive_before_joining(address: str, seconds: float = ANSWER_SECONDS) -> list[dict[str, Any]]:
    """Return the nodes that are alive, as `ray.nodes` does, which works only after joining. No answer: none.

    A process that joins while the Ray of its own host refuses its token is aborted by Ray's compiled code.
    """
    try:
        client = importlib.import_module("ray._raylet").GcsClient(address=address)
        found = client.get_all_node_info(timeout=seconds).values()
        return [
            {
                "NodeID": info.node_id.hex(),
                "NodeManagerAddress": info.node_manager_address,
                "NodeManagerHostname": info.node_manager_hostname,
                "NodeManagerPort": info.node_manager_port,
                "Alive": True,
            }
            for info in found
            if info.state == 0
        ]
    except Exception:  # private code of Ray, which may be another one in another version
        return []


def check_node_tokens(nodes: Iterable[Mapping[str, Any]], seconds: float = ANSWER_SECONDS) -> None:
    """Check that Ray nodes take what this process sends. Ray lets a node with a token join a head without one.

    Raises:
        ClusterError: some do not; the message names them.
    """
    if other := refusing_nodes(nodes, seconds):
        raise ClusterError(refusal(other))


def refusing_nodes(nodes: Iterable[Mapping[str, Any]], seconds: float = ANSWER_SECONDS) -> list[Mapping[str, Any]]:
    """Return those nodes that do not take what this process sends: its token, or none."""
    token = own_token()[0] if mode() == "token" else None
    asked = list(nodes)
    if not asked:
        return []

    def answer(node: Mapping[str, Any]) -> int | None:
        return grpc_status(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}", NODE_CALL, token, seconds)

    with ThreadPoolExecutor(min(16, len(asked))) as threads:
        return [node for node, status in zip(asked, threads.map(answer, asked)) if status == UNAUTHENTICATED]


def refusal(nodes: Iterable[Mapping[str, Any]]) -> str:
    """Describe nodes that refuse this process, with the command that mends it."""
    names = ", ".join(f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})" for node in nodes)
    sends = mode() == "token"
    wants = "does not take the token of the head" if sends else "wants a token, which the head does not have"
    mend = f"ray stop; export {MODE}={'token' if sends else 'disabled'}; ray start --address=HEAD:PORT"
    get = f"; `ray get-auth-token` shows the token on the machine of the head ({TOKEN})" if sends else ""
    return f"the Ray of {names} {wants}, so that no worker would start there. Run there: `{mend}`{get}"


def _how_to_get(address: str, token: str | None, source: str) -> str:
    """Return where to get the token of a head, as the end of a sentence."""
    private = _private_folder(address)
    if private is not None:
        return f" and `export {TOKEN_PATH}={private / TOKEN_NAME}`: CoEdge started this head with a token of its own"
    get = "`ray get-auth-token` shows the token on the head's machine"
    if token is not None:
        return f": the token of {source} is sent then. If it is another one: {get}"
    return f" and `export {TOKEN}=...`, or save the token to {source}; {get}"


def _private_folder(address: str) -> Path | None:
    """Return the folder of the token of a head that CoEdge started here as this user; None: there is none."""
    port = address.rpartition(":")[2]
    for file in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*/{ADDRESS_NAME}"):
        with contextlib.suppress(OSError, ValueError):
            if file.read_text(encoding="utf-8").rpartition(":")[2] == port:
                return file.parent
    return None
