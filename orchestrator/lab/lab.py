"""A lab on this machine: up, status, rates, a command inside of it, down."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from coedge.core.errors import ClusterError, ConfigError
from orchestrator.lab import nodes
from orchestrator.lab.namespace import call, check_possible, delete, end_processes
from orchestrator.lab.shaping import SLOWEST, network, shape
from orchestrator.lab.spec import LabSpec, overrides
from orchestrator.lab.state import HostState, LabState, read_state

LOCK_SECONDS = 5.0


class Lab:
    """Its name tells it from others on the same machine; all that there is of it begins with that.

    Raises:
        ClusterError: there can be no lab here: see `check_possible`.
    """

    def __init__(self, name: str = "lab") -> None:
        if not re.fullmatch(r"[a-z0-9-]{1,16}", name):
            raise ConfigError(f"a lab's name has 1 to 16 of the characters a-z 0-9 -, not {name!r}")
        check_possible()
        self.name = name
        # A device's name has no "@", so the switch is none.
        self._prefix, self._switch = f"coedge-{name}.", f"coedge-{name}@switch"
        self._folder = Path("/run") / f"coedge-{name}"

    def up(self, spec: LabSpec) -> LabState:
        """Makes the lab, or completes it: rates are set as the spec says, nodes that ended are started again.

        What a crash left half made is made anew.

        Raises:
            ClusterError: a lab of other devices is up, or something fails; what was made anew is then gone.
        """
        with self._alone():
            state = self.status()
            if state.head is not None and not state.is_of(spec):
                names = ", ".join(host.name for host in state.hosts)
                way = ", with links for weights" if state.fast_weights else ""
                raise ClusterError(f"another lab is up, of {names}{way}; end it first: {self._command('down')}")
            if state.head is not None:
                self._complete(spec, state)
                return self.status()
            self._down(state.namespaces)
            try:
                self._make(spec)
                return self.status()
            except BaseException:
                self._down(self.status().namespaces)
                raise

    def status(self) -> LabState:
        return read_state(self._prefix, self._switch)

    def rate(self, name: str, bytes_per_second: float | None, up: bool = True, down: bool = True) -> None:
        """Sets the rate of a device's link, of one direction or both, or that of a medium.

        Raises:
            ConfigError: too slow.
            ClusterError: there is no such device or medium.
        """
        if bytes_per_second is not None and bytes_per_second < SLOWEST:
            raise ConfigError(f"a link of {bytes_per_second:g} B/s is too slow; give at least {SLOWEST:g} B/s")
        with self._alone():
            state = self.status()
            host = next((host for host in state.hosts if host.name == name and host.port), None)
            medium = next((medium for medium in state.media if medium.name == name), None)
            if host is not None:
                if up:
                    self._shape(host.namespace, "eth0", host.up_bytes_per_second, bytes_per_second)
                if down:
                    self._shape(self._switch, host.port, host.down_bytes_per_second, bytes_per_second)
            elif medium is not None:
                self._shape(self._switch, medium.interface, medium.bytes_per_second, bytes_per_second)
            elif not state.hosts:
                raise ClusterError(f"no lab is up; start one: {self._command('up FILE')}")
            else:
                known = ", ".join([h.name for h in state.hosts] + [m.name for m in state.media])
                raise ClusterError(f"there is no {name!r} in the lab; there are {known}")

    def command(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """What runs a command on the head's host, and the environment by which it joins the cluster there.

        Overrides of the environment's own come last: they win.

        Raises:
            ClusterError: no lab is up, or its Ray has ended.
        """
        state = self.status()
        if state.head is None:
            what = "Ray's head has ended in the lab" if state.hosts else "no lab is up"
            raise ClusterError(f"{what}; start it: {self._command('up FILE')}")
        ended = [host.name for host in state.hosts if not host.node]
        if ended:
            raise ClusterError(f"Ray has ended on {', '.join(ended)}; start it again: {self._command('up FILE')}")
        addresses = [(host.name, host.address) for host in state.hosts]
        changes = [*overrides(addresses, state.head.address), environment.get("COEDGE_SET", "")]
        inside = {**environment, **nodes.ENVIRONMENT, "COEDGE_SET": ";".join(filter(None, changes))}
        inside.pop("RAY_ADDRESS", None)  # of another Ray than that of the lab
        return ["ip", "netns", "exec", state.head.namespace, *command], inside

    def down(self) -> int:
        """Ends all that runs in the lab, and leaves nothing of it; the number of processes that ended.

        Raises:
            ClusterError: some process does not end.
        """
        with self._alone():
            return self._down(self.status().namespaces)

    def _make(self, spec: LabSpec) -> None:
        namespaces = {device.name: self._prefix + device.name for device in spec.devices}
        for command in network(spec, self._switch, namespaces):
            call(command)
        self._folder.mkdir(mode=0o700)
        head = spec.device(spec.head)
        nodes.start([head], head, namespaces, self._folder)
        nodes.start([device for device in spec.devices if device != head], head, namespaces, self._folder)

    def _complete(self, spec: LabSpec, state: LabState) -> None:
        by_name = {host.name: host for host in state.hosts}
        for device in spec.devices:
            host = by_name[device.name]
            self._shape(host.namespace, "eth0", host.up_bytes_per_second, device.bytes_per_second)
            self._shape(self._switch, host.port, host.down_bytes_per_second, device.bytes_per_second)
        rates = {medium.name: medium.bytes_per_second for medium in state.media}
        for medium in spec.media:
            self._shape(self._switch, medium.interface, rates[medium.name], medium.bytes_per_second)
        ended = [device for device in spec.devices if not by_name[device.name].node]
        if ended:
            end_processes([by_name[device.name].namespace for device in ended], nodes.is_node)
            namespaces = {host.name: host.namespace for host in state.hosts}
            nodes.start(ended, spec.device(spec.head), namespaces, self._folder)

    def _shape(self, namespace: str, interface: str, now: float | None, wanted: float | None) -> None:
        if now is not None or wanted is not None:
            call(shape(namespace, interface, wanted))

    def _down(self, namespaces: Sequence[str]) -> int:
        ended = end_processes(namespaces, nodes.is_node)
        for name in namespaces:
            delete(name)
        shutil.rmtree(self._folder, ignore_errors=True)
        return ended

    def _command(self, action: str) -> str:
        return f"coedge lab {action}" + ("" if self.name == "lab" else f" --lab {self.name}")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time changes a lab. The lock is a name that goes with the process that holds it."""
        deadline = time.monotonic() + LOCK_SECONDS
        with socket.socket(socket.AF_UNIX) as lock:
            while True:
                try:
                    lock.bind(f"\0coedge-{self.name}")
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        what = f"another `coedge lab` is at work on this lab (I am process {os.getpid()})"
                        raise ClusterError(f"{what}; wait for its end, then try again") from None
                    time.sleep(0.1)
            yield


def describe(host: HostState) -> str:
    """Of Ray on a host, in a word."""
    return "head" if host.head and host.node else "node" if host.node else "ended"
