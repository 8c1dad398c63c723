"""The answers of a machine as facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.doctor.answers import Answers
from orchestrator.doctor.facts import Folder, Interface, Memory, NodeFacts, Processor

RAY_FILES, CACHE = "Ray's files", "cache"
# Names of questionsthat differ from those of their checks.
_CHECKS = {"interface": "mtu", "folder": "disk", "cache": "disk", "processor": "cpu"}


def node_facts(node: NodeFacts, answers: Answers[str]) -> NodeFacts:
    """Return a node with the answers to its questions."""
    values = answers.values

    def made(kind: type, name: str) -> Any:
        return kind(**values[name]) if values.get(name) else None

    problems = dict(answers.problems)
    if "interface" in values and values["interface"] is None:
        problems["mtu"] = f"no interface has the address {node.address}"
    return replace(
        node,
        versions=values.get("versions"),
        memory=made(Memory, "memory"),
        processor=made(Processor, "processor"),
        interface=made(Interface, "interface"),
        folders=tuple(Folder(**values[name]) for name in ("folder", "cache") if name in values),
        problems={_CHECKS.get(name, name): reason for name, reason in problems.items()},
    )
