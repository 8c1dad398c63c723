"""Sending programs and weights to workers over Ray, and taking programs back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from coedge.core.errors import ClusterError
from coedge.execution.program import Program
from coedge.graph.model import Model
from orchestrator.control import ray_control
from orchestrator.control.worker_group import WorkerGroup

ASK_SECONDS = 60.0
LOAD_SECONDS = 300.0


class RayShipment:
    """The way of programs and weights to the workers of a group (see `loader.Shipment`)."""

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group

    def send(self, epoch: int, model: Model, programs: Mapping[str, Program]) -> None:
        """Give each device its program, and those weights or slices of weights that it lacks; wait until it is ready.

        Raises:
            ClusterError: a device failed or did not answer in time; others may be ready all the same.
        """
        if self._group.closed:
            raise ClusterError("the cluster was closed while a plan was loaded; connect again")
        import ray

        actors, lost = self._group.actors, self._group.lost
        questions = {}
        for name, program in programs.items():
            slices = model.weight_slices(program.tiles())
            large = [part for _, part in sorted(slices.items()) if part.name in model.weights]
            questions[name] = actors[name].missing_weights.remote(model.hash, large)
        missing = ray_control.gather(questions, ASK_SECONDS, "say which weights they have", lost=lost)
        ray_control.check_connected()
        # Each weight lies once in Ray's object store, where the devices of one host share it.
        stored: dict[str, Any] = {}
        calls = {}
        for name, (graph_missing, lacking) in missing.items():
            for part in lacking:
                if part.key not in stored:
                    stored[part.key] = ray.put(np.ascontiguousarray(part.of(model.weights[part.name])))
            skeleton = model.skeleton if graph_missing else None
            keys = [part.key for part in lacking]
            calls[name] = actors[name].load.remote(epoch, programs[name], skeleton, keys, [stored[key] for key in keys])
        ray_control.gather(calls, LOAD_SECONDS, f"prepare {model.name}", lost=lost)

    def withdraw(self, epoch: int, names: Iterable[str]) -> None:
        """Unload an epoch from devices and wait until it is done. Devices that are lost or do not answer are skipped:
        the watcher or a deadline finds them."""
        lost = self._group.lost
        there = [name for name in names if name not in lost]
        with contextlib.suppress(Exception):
            calls = {name: self._group.actors[name].unload.remote(epoch) for name in there}
            if calls:
                ray_control.gather(calls, ASK_SECONDS, "unload a plan", lost=lost)
