"""A lab on this machine: start, status, rates, running a command in it, stop."""

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
from orchestrator.lab.shaping import MIN_RATE, network, shape
from orchestrator.lab.spec import LabSpec, overrides
from orchestrator.lab.state import LabState, read_state

LOCK_SECONDS = 5.0


class Lab:
    """A lab, identified by its name: the names of all its namespaces, folders and locks begin with it.

    Raises:
        ConfigError: the name has other characters than a-z, 0-9 and -.
        ClusterError: a lab is not possible on this machine; see `check_possible`.
    """

    def __init__(self, name: str = "lab") -> None:
        if not re.fullmatch(r"[a-z0-9-]{1,16}", name):
            raise ConfigError(f"a lab's name has 1 to 16 of the characters a-z, 0-9 and -, not {name!r}")
        check_possible()
        self.name = name
        # The name of a device has no "@", so this name is never that of a host.
        self._prefix, self._switch = f"coedge-{name}.", f"coedge-{name}@switch"
        self._folder = Path("/run") / f"coedge-{name}"

    def up(self, spec: LabSpec) -> LabState:
        """Start the lab, or bring a running one to the state of the spec: set its rates and restart ended nodes.

        A lab that a crash left unfinished is removed and started again.

        Raises:
            ClusterError: a lab with other devices is up, or a step fails. A lab that was not up before is then removed.
        """
        with self._locked():
            state = self.status()
            if state.head is not None and not state.is_of(spec):
                names = ", ".join(host.name for host in state.hosts)
                links = " and links for weights" if state.fast_weights else ""
                raise ClusterError(
                    f"another lab is up, with {names}{links}; stop it first: {self._command_line('down')}"
                )
            if state.head is not None:
                self._complete(spec, state)
                return self.status()
            self._down(state.namespaces)
            try:
                self._start(spec)
                return self.status()
            except BaseException:
                self._down(self.status().namespaces)
                raise

    def status(self) -> LabState:
        """Read the state of the lab from the system."""
        return read_state(self._prefix, self._switch)

    def rate(self, name: str, bytes_per_second: float | None, up: bool = True, down: bool = True) -> None:
        """Set the rate of a device's link, in one or both directions, or the rate of a medium.

        Args:
            bytes_per_second: None for no limit.
            up, down: directions to change, seen from the device.

        Raises:
            ConfigError: the rate is too low.
            ClusterError: there is no such device or medium.
        """
        if bytes_per_second is not None and bytes_per_second < MIN_RATE:
            raise ConfigError(f"a link of {bytes_per_second:g} B/s is too slow; give at least {MIN_RATE:g} B/s")
        with self._locked():
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
                raise ClusterError(f"no lab is up; start one: {self._command_line('up FILE')}")
            else:
                known = ", ".join([h.name for h in state.hosts] + [m.name for m in state.media])
                raise ClusterError(f"there is no {name!r} in the lab; there are {known}")

    def command(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Return the command line that runs a command on the head's host, and its environment.

        The environment makes the command join the cluster in the lab. Overrides that it already has take precedence.

        Raises:
            ClusterError: no lab is up, or Ray has ended on a host.
        """
        state = self.status()
        if state.head is None:
            problem = "Ray's head has ended in the lab" if state.hosts else "no lab is up"
            raise ClusterError(f"{problem}; start it: {self._command_line('up FILE')}")
        ended = [host.name for host in state.hosts if not host.node]
        if ended:
            raise ClusterError(f"Ray has ended on {', '.join(ended)}; start it again: {self._command_line('up FILE')}")
        addresses = [(host.name, host.address) for host in state.hosts]
        changes = [*overrides(addresses, state.head.address), environment.get("COEDGE_SET", "")]
        inside = {**environment, **nodes.ENVIRONMENT, "COEDGE_SET": ";".join(filter(None, changes))}
        inside.pop("RAY_ADDRESS", None)  # it would lead to another Ray
        return ["ip", "netns", "exec", state.head.namespace, *command], inside

    def down(self) -> int:
        """Stop all processes in the lab, remove the lab, and return the number of stopped processes.

        Raises:
            ClusterError: a process does not stop.
        """
        with self._locked():
            return self._down(self.status().namespaces)

    def _start(self, spec: LabSpec) -> None:
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

    def _shape(self, namespace: str, interface: str, current: float | None, rate: float | None) -> None:
        if current is not None or rate is not None:
            call(shape(namespace, interface, rate))

    def _down(self, namespaces: Sequence[str]) -> int:
        ended = end_processes(namespaces, nodes.is_node)
        for name in namespaces:
            delete(name)
        shutil.rmtree(self._folder, ignore_errors=True)
        return ended

    def _command_line(self, action: str) -> str:
        return f"coedge lab {action}" + ("" if self.name == "lab" else f" --lab {self.name}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock that keeps other processes from changing the lab.

        The lock is an abstract socket name, so it is released when the process ends, however it ends.

        Raises:
            ClusterError: another process holds the lock for too long.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        with socket.socket(socket.AF_UNIX) as lock:
            while True:
                try:
                    lock.bind(f"\0coedge-{self.name}")
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise ClusterError(
                            f"another process is changing lab {self.name!r} (this is process {os.getpid()}); wait "
                            "until it has finished, then try again"
                        ) from None
                    time.sleep(0.1)
            yield
