"""What the facts of an examination mean: a pure function of them."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.doctor.facts import DoctorFacts
from orchestrator.doctor.finding import Finding, commands_in
from orchestrator.doctor.node_findings import node_findings
from orchestrator.doctor.way_findings import way_findings

START_HEAD = "ray start --head --port={port} --node-ip-address={host}"


def findings(facts: DoctorFacts) -> tuple[Finding, ...]:
    """Return what was found, the cluster first, then every node, then the ways between them."""
    found = list(_cluster(facts))
    for node in facts.nodes:
        found += node_findings(node, facts.versions, facts.address or "HEAD:6379")
    return (*found, *way_findings(facts))


def _cluster(facts: DoctorFacts) -> Iterator[Finding]:
    if facts.configuration_problem:
        text = f"{facts.configuration}: {facts.configuration_problem}"
        yield Finding("configuration", "", "red", text, f"correct {facts.configuration}")
    if facts.address is None:
        if facts.configuration and not facts.configuration_problem:
            text = "the configuration has no ray.address: CoEdge starts a Ray of its own on this machine"
            yield Finding("head", "", "ok", text)
        return
    host, _, port = facts.address.rpartition(":")
    start_head = START_HEAD.format(port=port or "6379", host=host or "ADDRESS")
    if facts.head_problem:
        yield Finding("head", "", "red", facts.head_problem, f"{start_head}   (on {host or 'the head'})")
        return
    yield Finding("head", "", "ok", f"a Ray head answers at {facts.address}")
    if facts.join_problem:
        yield Finding("join", "", "red", facts.join_problem, _mend_join(facts.join_problem, facts.address))
        return
    members = sum(bool(node.address) for node in facts.nodes)
    yield Finding("join", "", "ok", f"this process joined a cluster of {members} node{'s' * (members != 1)}")
    join = f"ray start --address={facts.address}"
    for device, node in facts.missing:
        text = f"its node {node!r} is not in the cluster; alive are {', '.join(facts.known)}"
        yield Finding("nodes", device, "red", text, f"{join}   (on {node})")
    for address in facts.gone:
        yield Finding("nodes", address, "warning", "this node left the cluster or died", f"{join}   (on {address})")


def _mend_join(problem: str, address: str) -> str:
    """Return the command for a head that answers, but does not let this process join."""
    if "token" in problem.lower():
        return commands_in(problem) or "export RAY_AUTH_MODE=token; export RAY_AUTH_TOKEN=..."
    if "version mismatch" in problem.lower():
        return "pip install ray==VERSION, with the Python and Ray versions of the head"
    return f"ray start --address={address}   (on this machine: the client is a node, too)"
