"""All devices of a plan in this process: the same programs on in-memory channels, no Ray and no sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.errors import PlanError
from coedge.lowering import lower
from coedge.machine import Machine
from coedge.model import Model
from coedge.plan import Plan
from coedge.program import CLIENT, Answer, Compute, Program, Receive, Send
from coedge.values import as_arrays, output, restore, wants_tensors
from workers.kernels import Kernels, received

Array = NDArray[Any]


def run_in_process(model: Model, plan: Plan, x: Any, threads: int = 1) -> Any:
    """Runs a plan on one input, all devices in turn, in this process.

    Args:
        x: the input (tensor or array), or a tuple of them.

    Returns:
        What the module returns: tensors for tensors, arrays for arrays.

    Raises:
        PlanError: the plan does not fit the model.
        InputError: the input does not fit the model.
    """
    arrays = model.check_inputs(as_arrays(x))
    outputs = InProcess(model, lower(plan, model), Kernels(model, threads)).run(arrays)
    return restore(model.structure, [output(array, wants_tensors(x)) for array in outputs])


class InProcess:
    """Programs of all devices, with one set of kernels for all: runs frames one after another."""

    def __init__(self, model: Model, programs: Mapping[str, Program], kernels: Kernels) -> None:
        self.model, self.kernels = model, kernels
        self.programs = dict(programs)
        self._frame = 0

    def run(self, arrays: tuple[Array, ...]) -> list[Array]:
        """The model's outputs for its inputs."""
        self._frame += 1
        machines = {name: Machine(program) for name, program in self.programs.items()}
        mail: list[tuple[str, int, list[Array]]] = []
        for name, program in self.programs.items():
            machines[name].begin(self._frame)
            for step in program.steps:
                if isinstance(step, Receive) and step.peer == CLIENT:
                    mail.append((name, step.channel, list(arrays)))
        answer: list[Array] | None = None
        moved = True
        while moved:
            moved = False
            while mail:
                receiver, channel, values = mail.pop()
                machines[receiver].arrived(self._frame, channel, self._received(machines[receiver], channel, values))
                moved = True
            for name, machine in machines.items():
                while (ready := machine.next()) is not None:
                    moved = True
                    result = self._step(name, machine, ready[1], mail)
                    answer = result if result is not None else answer
        if answer is None or any(not machine.idle for machine in machines.values()):
            stuck = [name for name, machine in machines.items() if not machine.idle]
            raise PlanError(f"the programs do not end: {', '.join(stuck)} wait for messages that nobody sends")
        return answer

    def _received(self, machine: Machine, channel: int, values: list[Array]) -> list[Array]:
        step = machine.receive_of(channel)
        return received(step, machine.program.patches, self.model.graph.tensors, values) if step else values

    def _step(
        self, name: str, machine: Machine, index: int, mail: list[tuple[str, int, list[Array]]]
    ) -> list[Array] | None:
        step, values = machine.program.steps[index], machine.values(self._frame, index)
        made = self.kernels.perform(machine.program.patches, step, values)
        if isinstance(step, Send):
            mail.append((step.peer, step.channel, made))
        machine.done(self._frame, index, made if isinstance(step, Compute) else ())
        # Not np.ascontiguousarray, which makes a vector of a scalar.
        return [np.asarray(array, order="C") for array in made] if isinstance(step, Answer) else None
