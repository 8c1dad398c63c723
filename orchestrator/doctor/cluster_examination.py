"""Gathering of the facts of a Ray cluster: one actor on every node asks its machine, and they connect to each other."""

from __future__ import annotations

import atexit
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coedge.config.cluster_config import ClusterConfig
from coedge.core.errors import CoEdgeError
from orchestrator.control import ray_connection
from orchestrator.control.deadline import Overrun, within
from orchestrator.control.ray_token import refusal, refusing_nodes
from orchestrator.doctor import node_labels
from orchestrator.doctor.answers import Answers, TimeLeft, ask_nodes, reason_of_failure
from orchestrator.doctor.examiner import Examiner
from orchestrator.doctor.facts import Clock, DoctorFacts, NodeFacts, Way
from orchestrator.doctor.node_answers import RAY_FILES, node_facts

JOIN_SECONDS, LIST_SECONDS, START_SECONDS, ASK_SECONDS = 10.0, 4.0, 4.0, 8.0
LISTEN_SECONDS, CONNECT_SECONDS, CLOCK_SECONDS, LEAVE_SECONDS = 3.0, 3.0, 3.0, 3.0
# Time for all transfers, and most and least time for one.
TRANSFERS_SECONDS, MOST_TRANSFER_SECONDS, LEAST_TRANSFER_SECONDS = 8.0, 1.0, 0.2
CLOCK_QUESTIONS = 5
# The sender waits so much longer than the transfer for the receiver's count.
TRANSFER_GRACE_SECONDS = 2.5
THREADS = 16


class ClusterExamination:
    """The questions to a cluster. Call `join` first, and `leave` in the end, whatever happened.

    Args:
        facts: those that are known, with this machine as the only node.
    """

    def __init__(self, config: ClusterConfig, facts: DoctorFacts, time_left: TimeLeft) -> None:
        self._config, self._facts, self._time_left = config, facts, time_left
        self._joined = False
        self._nodes: dict[str, dict[str, Any]] = {}
        self._actors: dict[str, Any] = {}
        # Reasons why no actor was started, by label: the node wants another token, or something else.
        self._refused: dict[str, str] = {}
        self._unasked: dict[str, str] = {}
        self._own = ""

    def join(self) -> DoctorFacts:
        """Join the cluster and name its nodes. The facts have the problem, if there is one."""
        import ray

        seconds = self._time_left.at_most(JOIN_SECONDS)
        config = self._config.model_copy(update={"connect_timeout_seconds": max(seconds, 0.1)})
        try:
            ray_connection.enter(config, check_nodes=False)
            self._joined = True
            nodes = within(self._time_left.at_most(LIST_SECONDS), ray.nodes, "coedge-doctor-nodes")
        except (CoEdgeError, Overrun) as error:
            self._facts = replace(self._facts, join_problem=str(error))
            return self._facts
        except Exception as error:
            self._facts = replace(self._facts, join_problem=f"{type(error).__name__}: {error}")
            return self._facts
        context = ray.get_runtime_context()
        own_id = str(context.get_node_id())
        self._nodes, self._own = node_labels.label_nodes(nodes, self._config, own_id)
        self._facts = replace(
            self._facts,
            address=str(context.gcs_address),
            missing=node_labels.missing_devices(nodes, self._config),
            gone=node_labels.gone_addresses(nodes),
            known=tuple(f"{n['NodeManagerAddress']} ({n['NodeManagerHostname']})" for n in self._nodes.values()),
        )
        return self._facts

    def ask(self) -> DoctorFacts:
        """Start an actor on every node and ask it everything but its speed."""
        self._start_actors()
        calls: dict[tuple[str, str], Callable[[], Any]] = {}
        for label, actor in self._actors.items():
            node = self._nodes[label]
            calls[label, "versions"] = actor.versions.remote
            calls[label, "interface"] = _bound(actor.interface, node["NodeManagerAddress"])
            calls[label, "folder"] = _bound(actor.folder, RAY_FILES, _ray_folder(node))
            if label != self._own:  # this process has asked itself already
                calls[label, "memory"] = actor.memory.remote
                calls[label, "processor"] = actor.processor.remote
        answers = ask_nodes(calls, self._time_left.at_most(ASK_SECONDS))
        nodes = []
        for label, node in self._nodes.items():
            own = _of(answers, label)
            if label in self._refused:
                own.problems["token"] = self._refused[label]
            if label in self._unasked:
                own.problems["nodes"] = self._unasked[label]
            found = node_facts(NodeFacts(label, node["NodeManagerAddress"]), own)
            nodes.append(_merged(self._facts.nodes[0], found) if label == self._own else found)
        nodes.sort(key=lambda node: not node.here)
        nodes = self._with_reachability(nodes)
        self._facts = replace(self._facts, nodes=tuple(self._with_clock(node) for node in nodes))
        return self._facts

    def speeds(self, seconds: float) -> Answers[str]:
        """Measure the speed of every node. Nodes of one host are measured in turn."""
        waiting = dict.fromkeys(node.label for node in self._facts.nodes if node.label in self._answering())
        answers: Answers[str] = Answers()
        end = time.monotonic() + self._time_left.at_most(seconds)
        while turn := {self._nodes[label]["NodeManagerHostname"]: label for label in waiting}:
            calls = {label: self._actors[label].speed.remote for label in turn.values()}
            found = ask_nodes(calls, max(0.0, end - time.monotonic()))
            answers.values |= found.values
            answers.problems |= found.problems
            for label in turn.values():
                del waiting[label]
        return answers

    def ways(self, facts: DoctorFacts) -> DoctorFacts:
        """Connect every node to every other, and measure the rates."""
        addresses = {label: self._nodes[label]["NodeManagerAddress"] for label in self._answering()}
        if len(addresses) < 2:
            return facts
        listening = ask_nodes(
            {label: _bound(self._actors[label].listen, address) for label, address in addresses.items()},
            self._time_left.at_most(LISTEN_SECONDS),
        )
        targets = {label: (addresses[label], port) for label, port in listening.values.items()}
        seconds = self._time_left.at_most(CONNECT_SECONDS)
        reached = ask_nodes(
            {
                label: _bound(
                    self._actors[label].reach, {o: target for o, target in targets.items() if o != label}, seconds
                )
                for label in addresses
            },
            self._time_left.at_most(seconds + LISTEN_SECONDS),
        )
        ways = []
        for sender in addresses:
            for receiver, address in addresses.items():
                if sender == receiver:
                    continue
                problem, trip = listening.problems.get(receiver, ""), None
                if not problem and sender in reached.values:
                    problem, trip = reached.values[sender][receiver]
                problem = problem or reached.problems.get(sender, "")
                ways.append(Way(sender, receiver, address, problem, None if problem else trip))
        return replace(facts, ways=self._rates(ways, targets))

    def leave(self) -> None:
        """End the actors and the connection."""
        import ray

        if not self._joined:
            return

        def leave() -> None:
            for actor in self._actors.values():
                with contextlib.suppress(Exception):
                    ray.kill(actor)
            ray_connection.leave()

        try:
            within(LEAVE_SECONDS, leave, "coedge-doctor-leave")
        except Overrun:
            # Ray would try again, without an end, when the process ends.
            atexit.unregister(ray.shutdown)

    def _start_actors(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        import orchestrator.doctor

        # By value: the node may have no coedge, or another one.
        ray.cloudpickle.register_pickle_by_value(orchestrator.doctor)
        try:
            kind = ray.remote(Examiner)
            refusing = {node["NodeID"] for node in refusing_nodes(self._nodes.values())}
            for label, node in self._nodes.items():
                if node["NodeID"] in refusing:
                    self._refused[label] = refusal([node])
                    continue
                strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
                actor = kind.options(num_cpus=0, max_concurrency=THREADS, max_restarts=0, scheduling_strategy=strategy)
                try:
                    seconds = self._time_left.at_most(START_SECONDS)
                    self._actors[label] = within(seconds, actor.remote, "coedge-doctor-start", ray.kill)
                except Exception as error:
                    self._unasked[label] = f"Ray started no actor there: {reason_of_failure(error)}"
        finally:
            ray.cloudpickle.unregister_pickle_by_value(orchestrator.doctor)

    def _answering(self) -> list[str]:
        """Return the labels of the nodes that have told their versions."""
        return [node.label for node in self._facts.nodes if node.versions is not None and node.label in self._actors]

    def _with_reachability(self, nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
        """Try to connect from here to the Ray of each node that was silent."""
        ports = {node.label: int(self._nodes[node.label]["NodeManagerPort"]) for node in nodes}
        silent = {n.label: (n.address, ports[n.label]) for n in nodes if n.versions is None and not n.here}
        reached = Examiner().reach(silent, max(0.1, self._time_left.at_most(CONNECT_SECONDS)))
        return [
            replace(node, unreachable=reached[node.label][0], ray_port=ports[node.label])
            if node.label in reached
            else node
            for node in nodes
        ]

    def _with_clock(self, node: NodeFacts) -> NodeFacts:
        if node.here or node.versions is None:
            return node
        best: Clock | None = None
        end = time.monotonic() + self._time_left.at_most(CLOCK_SECONDS)
        for _ in range(CLOCK_QUESTIONS):
            before, start = time.time(), time.monotonic()
            answers = ask_nodes({"clock": self._actors[node.label].clock.remote}, max(0.0, end - time.monotonic()))
            trip = time.monotonic() - start
            if answers.problems:
                return node if best else replace(node, problems={**node.problems, "clocks": answers.problems["clock"]})
            if best is None or trip < best.round_trip_seconds:
                best = Clock(answers.values["clock"] - (before + trip / 2), trip)
        return replace(node, clock=best)

    def _rates(self, ways: list[Way], targets: Mapping[str, tuple[str, int]]) -> tuple[Way, ...]:
        """Measure the rates one after the other, as long as there is time. In a large cluster some are not measured."""
        good = [way for way in ways if not way.problem]
        end = time.monotonic() + self._time_left.at_most(TRANSFERS_SECONDS)
        each = TRANSFERS_SECONDS / max(len(good), 1) - 0.1
        seconds = max(LEAST_TRANSFER_SECONDS, min(MOST_TRANSFER_SECONDS, each))
        measured = []
        for way in ways:
            if not way.problem and end - time.monotonic() > seconds:
                call = _bound(self._actors[way.sender].rate, targets[way.receiver], seconds)
                answers = ask_nodes({"rate": call}, self._time_left.at_most(seconds + TRANSFER_GRACE_SECONDS))
                if answers.values:
                    way = replace(way, bytes_per_second=answers.values["rate"])
                elif self._time_left.at_most(1.0) > 0:
                    way = replace(way, transfer_problem=answers.problems["rate"])
            measured.append(way)
        return tuple(measured)


def _bound(method: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: method.remote(*arguments)


def _of(answers: Answers[tuple[str, str]], label: str) -> Answers[str]:
    return Answers(
        {question: value for (of, question), value in answers.values.items() if of == label},
        {question: value for (of, question), value in answers.problems.items() if of == label},
    )


def _merged(here: NodeFacts, node: NodeFacts) -> NodeFacts:
    """Return this machine as a node of the cluster: what its Ray node told comes before what this process found."""
    cache = tuple(folder for folder in here.folders if folder.purpose == "cache")
    return replace(
        here,
        label=node.label,
        address=node.address,
        versions=node.versions,
        interface=node.interface or here.interface,
        folders=(*node.folders, *cache) if node.folders else here.folders,
        problems={**here.problems, **node.problems},
    )


def _ray_folder(node: Mapping[str, Any]) -> str:
    """Return the folder of Ray's files: `FOLDER/session_.../sockets/raylet`."""
    return str(Path(node["RayletSocketName"]).parents[2])
