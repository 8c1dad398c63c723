"""Gathering of the facts, of this machine or of a cluster. What does not answer costs a deadline and no more."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from coedge.config.cluster_config import ClusterConfig
from coedge.config.loading import load_config
from coedge.core.cache_folder import user_cache_folder
from coedge.core.errors import CoEdgeError
from orchestrator.control.ray_address import check_ray_address
from orchestrator.doctor.answers import Answers, TimeLeft, ask_here
from orchestrator.doctor.cluster_examination import ClusterExamination
from orchestrator.doctor.examiner import Examiner
from orchestrator.doctor.facts import DoctorFacts, NodeFacts, Speed
from orchestrator.doctor.node_answers import CACHE, RAY_FILES, node_facts
from orchestrator.profiling.speed_cache import load_speed, store_speed

TOTAL_SECONDS = 30.0
# Most time of each step. The steps of a healthy cluster take some seconds together.
HERE_SECONDS, SPEED_SECONDS, HEAD_SECONDS = 8.0, 8.0, 5.0


def examine(cluster: str | None = None, overrides: tuple[str, ...] = ()) -> DoctorFacts:
    """Return the facts of this machine and, with a configuration, of its cluster. It takes at most `TOTAL_SECONDS`.

    Args:
        cluster: path of the configuration. None: this machine only.
    """
    time_left, problem = TimeLeft(TOTAL_SECONDS), ""
    config: ClusterConfig | None = None
    if cluster is not None:
        try:
            config = load_config(cluster, overrides)
        except (CoEdgeError, OSError) as error:
            problem = str(error)
    cache = user_cache_folder() if config is None else config.cache_path
    here = _examine_here(cache, time_left)
    facts = DoctorFacts((here,), versions=here.versions or {}, configuration=cluster, configuration_problem=problem)
    if config is None or config.ray.address is None:
        return _with_speed_here(facts, cache, time_left)
    address = config.ray.address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    facts = replace(facts, address=address)
    try:
        if ":" in address and "://" not in address:
            check_ray_address(address, time_left.at_most(HEAD_SECONDS))
    except CoEdgeError as error:
        return _with_speed_here(replace(facts, head_problem=str(error)), cache, time_left)
    examination = ClusterExamination(config, facts, time_left)
    try:
        facts = examination.join()
        if facts.join_problem:
            return _with_speed_here(facts, cache, time_left)
        facts = examination.ask()
        speeds = examination.speeds(SPEED_SECONDS)
        if facts.nodes[0].label not in speeds.values:
            facts = _with_speed_here(facts, cache, time_left)
        return examination.ways(_with_speeds(facts, speeds, cache))
    finally:
        examination.leave()


def _examine_here(cache: Path, time_left: TimeLeft) -> NodeFacts:
    examiner = Examiner()
    ray_files = os.path.join(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")
    answers = ask_here(
        {
            "versions": examiner.versions,
            "memory": examiner.memory,
            "processor": examiner.processor,
            "interface": lambda: examiner.interface(""),
            "folder": lambda: examiner.folder(RAY_FILES, ray_files),
            "cache": lambda: examiner.folder(CACHE, str(cache)),
        },
        time_left.at_most(HERE_SECONDS),
    )
    return node_facts(NodeFacts(platform.node() or "here", here=True), answers)


def _with_speed_here(facts: DoctorFacts, cache: Path, time_left: TimeLeft) -> DoctorFacts:
    label = facts.nodes[0].label
    return _with_speeds(facts, ask_here({label: Examiner().speed}, time_left.at_most(SPEED_SECONDS)), cache)


def _with_speeds(facts: DoctorFacts, speeds: Answers[str], cache: Path) -> DoctorFacts:
    """Return facts with the measured speed of each node, by label, beside the best that is known of its kind."""
    nodes = []
    for node in facts.nodes:
        if node.label in speeds.values:
            node = replace(node, speed=_speed(speeds.values[node.label], cache))
        elif node.label in speeds.problems and node.speed is None:
            node = replace(node, problems={**node.problems, "speed": speeds.problems[node.label]})
        nodes.append(node)
    return replace(facts, nodes=tuple(nodes))


def _speed(answer: Mapping[str, Any], cache: Path) -> Speed:
    known = load_speed(cache, answer["fingerprint"])
    store_speed(cache, answer["fingerprint"], answer["gflops"])
    return Speed(answer["gflops"], known, answer["throttles"])
