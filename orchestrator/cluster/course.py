"""The plans that the frames of one request run by: they change at a frame boundary, when devices come or go."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coedge.graph.model import Model
from coedge.plan.frame_assignment import frame_assignment
from coedge.plan.plan import Plan
from orchestrator.control.worker_group import WorkerGroup
from orchestrator.planner.repair import without_devices

# A course without a frame for so long gets no better plans until there is one.
IN_USE_SECONDS = 30.0


class Wish(NamedTuple):
    """A way of making plans.

    Attributes:
        search: search the whole plan space, also if there are plans with boundaries for the present links.
        trial: run the best ones, and refuse those that do not meet the objective.
    """

    search: bool
    trial: bool


FIRST = Wish(search=False, trial=True)


@dataclass(frozen=True)
class Choice:
    """Plans, and the part of the frames that each gets."""

    plans: Sequence[Plan]
    weights: Sequence[float] = (1.0,)


class Course:
    """The present plans of one request.

    When devices are lost that the plans use, the others take over their shares at once, and better plans are made and
    loaded in the background. When devices come back, the plans stay until better ones are loaded.

    Args:
        choose: makes the plans for the devices that are there now; None: the plans are given and not made anew.
        given: the first plans; None: the first call of `plan` makes them.
        improve: asks for a call of `adopt` from another thread.
        on_plan: told of every plan that later frames run by, and why. Given plans are not told.
    """

    def __init__(
        self,
        model: Model,
        group: WorkerGroup,
        choose: Callable[[Wish], Choice] | None,
        given: Choice | None,
        improve: Callable[[Course], None],
        on_plan: Callable[[Plan, str], None] = lambda plan, why: None,
    ) -> None:
        self.model = model
        self.choose = choose
        self._group, self._improve, self._given, self._on_plan = group, improve, given, on_plan
        self._lock = threading.Lock()
        self._choice: Choice | None = None
        self._used_seconds = -math.inf
        self._version = -1  # of the membership that the choice was made for

    def plan(self) -> Plan:
        """Return the plan of the next frame.

        Raises:
            CoEdgeError: the first plans cannot be made.
        """
        with self._lock:
            self._bring_up_to_date()
            self._used_seconds = time.monotonic()
            return self._plans[next(self._turns)]

    @property
    def in_use(self) -> bool:
        """Return whether frames ran by this course a moment ago."""
        return time.monotonic() - self._used_seconds < IN_USE_SECONDS

    def plans(self) -> list[Plan]:
        """Return the present plans. Raises the errors of `plan`."""
        with self._lock:
            self._bring_up_to_date()
            return list(self._plans)

    def adopt(self, choice: Choice, version: int) -> None:
        """Let later frames run by plans that are loaded. Plans for a membership of before are dropped."""
        with self._lock:
            if version == self._group.version:
                self._start(choice, "made in the background")
                self._version = version

    def renew(self) -> None:
        """Make the plans anew when the next frame comes, as after a measurement of the links."""
        with self._lock:
            if self.choose is not None:
                self._choice = None

    def _bring_up_to_date(self) -> None:
        """Make the first plans, or follow a change of the membership. Holds the lock."""
        version = self._group.version
        if self._choice is None:
            self._begin()
        if self._version != version:
            self._follow()
            self._version = version

    def _begin(self) -> None:
        version = self._group.version
        if self._given is not None:
            self._start(self._given, None)
            if self.choose is not None:
                self._given = None  # made anew after `renew`
        else:
            assert self.choose is not None
            self._start(self.choose(FIRST), "the first one")
        lost = self._group.lost.keys()
        # Plans that use a lost device are followed up at once.
        self._version = -1 if any(lost & _devices(plan) for plan in self._plans) else version

    def _start(self, choice: Choice, why: str | None) -> None:
        present = set() if self._choice is None else {plan.digest for plan in self._choice.plans}
        for plan in choice.plans:
            if why is not None and plan.digest not in present:
                self._on_plan(plan, f"{why}: {plan.reason}" if plan.reason else why)
        self._choice, self._plans = choice, list(choice.plans)
        self._turns = frame_assignment(list(choice.weights))

    def _follow(self) -> None:
        """Follow a change of the membership."""
        assert self._choice is not None
        lost, source = frozenset(self._group.lost), self._group.source
        if self.choose is None:
            assert self._given is not None
            self._start(_repaired(self._given, lost, source), "a device was lost or is back")
        else:
            self._start(_repaired(self._choice, lost, source), "a device was lost or is back")
            self._improve(self)


def _devices(plan: Plan) -> set[str]:
    return {*plan.used_devices, plan.source, plan.sink}


def _repaired(choice: Choice, lost: frozenset[str], source: str) -> Choice:
    """Return the plans without lost devices, and those that use none as they are."""
    plans = [without_devices(plan, lost, source) if lost & _devices(plan) else plan for plan in choice.plans]
    return Choice(plans, choice.weights)
