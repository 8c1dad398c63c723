"""A runner for the devices of a plan in this process: the same programs, without Ray and sockets."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import InputError, PlanError, step_failed
from coedge.core.values import as_arrays, output, restore, wants_tensors
from coedge.execution.program import Program
from coedge.execution.scheduler import Scheduler, Task
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from workers.runtime.kernels import Kernels, received

Array = NDArray[Any]

# ONNX Runtime crashes if the system cannot make the threads that it is told to.
MOST_THREADS = 1024


def run_in_process(model: Model, plan: Plan, x: Any, threads: int = 1) -> Any:
    """Run a plan on one input, with all devices in turn in this process.

    Args:
        x: the input (tensor or array), or a tuple of them.

    Returns:
        The outputs in the structure that the module returns: tensors for tensors, arrays for arrays.

    Raises:
        PlanError: the plan does not fit the model.
        InputError: the input does not fit the model, or an argument is not what it should be.
        StepFailed: a kernel raised; names device, step and layer.
    """
    Model.check(model)
    if not isinstance(threads, Integral) or not 0 < threads <= MOST_THREADS:
        raise InputError(f"threads is {threads!r:.100}; give a whole number from 1 to {MOST_THREADS}")
    arrays = model.check_inputs(as_arrays(x))
    outputs = InProcess(model, lower(plan, model), Kernels(model, threads)).run(arrays)
    return restore(model.structure, [output(array, wants_tensors(x)) for array in outputs])


class InProcess:
    """The programs of all devices with common kernels. It runs one frame after the other."""

    def __init__(self, model: Model, programs: Mapping[str, Program], kernels: Kernels) -> None:
        self.model, self.kernels = model, kernels
        self.programs = dict(programs)
        self._frame = 0

    def run(self, arrays: tuple[Array, ...]) -> list[Array]:
        """Return the model's outputs for its inputs.

        Raises:
            PlanError: a program waits for a message that no other program sends.
            StepFailed: a step raised.
        """
        self._frame += 1
        schedulers = {name: Scheduler() for name in self.programs}
        mail: list[tuple[str, int, list[Array]]] = []
        for name, program in self.programs.items():
            schedulers[name].load(0, program)
            mail += [(name, channel, list(arrays)) for channel in program.input_channels]
        answer: list[Array] | None = None
        ended: set[str] = set()
        moved = True
        while moved:
            moved = False
            while mail:
                receiver, channel, came = mail.pop()
                task = schedulers[receiver].came(0, self._frame, channel)
                if isinstance(task, Task) and (step := task.step).kind == "receive":
                    try:
                        rows = received(step, task.program.patches, self.model.graph.tensors, came)
                    except Exception as error:
                        raise step_failed(receiver, step.description(self.model.layers), error) from error
                    if schedulers[receiver].done(task, rows):
                        ended.add(receiver)
            for name, scheduler in schedulers.items():
                while (task := scheduler.next()) is not None:
                    moved = True
                    made = self._perform(name, task, scheduler.values(task))
                    if task.step.kind == "send":
                        mail.append((task.step.peer, task.step.channel, made))
                    elif task.step.kind == "answer":
                        # np.ascontiguousarray would make a scalar a vector.
                        answer = [np.asarray(array, order="C") for array in made]
                    if scheduler.done(task, made):
                        ended.add(name)
        stuck = [name for name, program in self.programs.items() if program.steps and name not in ended]
        if answer is None or stuck:
            raise PlanError(f"the programs do not end: {', '.join(stuck)} wait for messages that no device sends")
        return answer

    def _perform(self, name: str, task: Task, values: Mapping[int, Array]) -> list[Array]:
        """Return the arrays that a step of a device makes."""
        try:
            return self.kernels.perform(task.program.patches, task.step, values)
        except Exception as error:
            raise step_failed(name, task.step.description(self.model.layers), error) from error
