"""Measure the worth of each phase of the search by switching it off.

Every phase is switched off in turn, and the search plans the cases that the phase takes part in:

    zoo        networks of the zoo on the test beds of `configs/testbeds`, for least latency
    energy     one of these networks on the test beds, for least energy
    deadline   another one, for least energy within 1.3 times the least latency
    small      random chains of `benchmarks.instances`, with six objectives in turn

The cost of a plan is the objective's cost as predicted. The loss of a phase is the cost without it over the cost with
it. Planning time is CPU time of the search alone; the plans of the named schemes are made once per case.

`python -m benchmarks.ablation [--json] [--quick] [--instances 60] [--first 0] [--save FILE] [--phase NAME ...]`, about
two hours. Parts of the group small, each with other instances, are put together from the samples that a run keeps.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.instances import Instance
from benchmarks.report import Report, parser
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.profile.testbed import load_testbed, profile_of
from orchestrator.cli.models import load_model
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.planner.planner import STARTING_PLANS, named_plans
from orchestrator.schemes.scheme import rank
from orchestrator.search import (
    auto,
    forced_inclusion,
    layout,
    linear_programme,
    link_order,
    local_search,
    multistart,
    space,
)
from orchestrator.search.auto import search
from orchestrator.search.flow import Flow
from orchestrator.search.transfer_options import TransferOptions, option_sets

BEDS = Path(__file__).resolve().parent.parent / "configs" / "testbeds"
MODELS = ("mobilenet_v2", "googlenet", "resnet50", "unet", "squeezenet", "resnet18")
ENERGY_MODEL, DEADLINE_MODEL = "mobilenet_v2", "resnet18"
DEADLINE = 1.3
EVERYTHING = "all phases"

GROUPS = ("zoo", "energy", "deadline", "small")
LARGE, TRADED = ("zoo", "energy", "deadline"), ("energy", "deadline", "small")

Switch = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Phase:
    """A part of the search: how to switch it off, and the groups of cases that it takes part in."""

    switch: Switch
    groups: Sequence[str] = GROUPS


@dataclass(frozen=True)
class Case:
    """One planning problem, with the plans of the named schemes."""

    group: str
    name: str
    model: Model
    profile: Profile
    objective: Objective
    known: tuple[Plan, ...]


@dataclass(frozen=True)
class Outcome:
    """Cost of the plan that was found; infinite where it breaks a constraint. CPU seconds of the search."""

    cost: float
    seconds: float


def main() -> None:
    options = _arguments()
    report = Report("ablation")
    networks = [ENERGY_MODEL] if options.quick else options.network or MODELS
    numbers = range(options.first, options.first + (3 if options.quick else options.instances))
    cases = list(_cases(options.group or GROUPS, networks, numbers))
    groups = {case.group for case in cases}
    chosen = {
        name: phase
        for name, phase in PHASES.items()
        if (not options.phase or name in options.phase) and not groups.isdisjoint(phase.groups)
    }
    outcomes: dict[str, list[Outcome | None]] = {}
    for name, phase in {EVERYTHING: Phase(contextlib.nullcontext), **chosen}.items():
        with phase.switch():
            outcomes[name] = [_planned(case) if case.group in phase.groups else None for case in cases]
        report.sample(f"{name}: cost", [outcome.cost for outcome in outcomes[name] if outcome])
        report.sample(f"{name}: s", [outcome.seconds for outcome in outcomes[name] if outcome])
        losses = _losses(outcomes[name], outcomes[EVERYTHING])
        report.note(f"without {name}", statistics.geometric_mean(losses), "x cost")
        print(_row(name, cases, outcomes), file=sys.stderr, flush=True)
    if options.save:
        options.save.write_text(markdown(cases, outcomes), encoding="utf-8")
    report.finish(options.json)


def _arguments() -> Any:
    made = parser(__doc__, instances=60, first=0)
    made.add_argument("--network", action="append", choices=MODELS, help="only these networks in the group zoo")
    made.add_argument("--group", action="append", choices=GROUPS, help="only these groups of cases")
    made.add_argument("--save", type=Path, help="write the table as Markdown to this file")
    made.add_argument("--phase", action="append", choices=list(PHASES), metavar="NAME", help="only these phases")
    return made.parse_args()


def _cases(groups: Sequence[str], networks: Sequence[str], numbers: Sequence[int]) -> Iterator[Case]:
    used = {"zoo": networks, "energy": [ENERGY_MODEL], "deadline": [DEADLINE_MODEL]}
    for name in dict.fromkeys(name for group, names in used.items() if group in groups for name in names):
        model = load_model(name, 224)
        for path in sorted(BEDS.glob("*.yaml")):
            yield from (
                case
                for case in _on_test_bed(name, path.stem, model, profile_of(load_testbed(path), model))
                if case.group in groups and name in used[case.group]
            )
    for number in numbers if "small" in groups else ():
        instance = Instance.of(number)
        model, profile, least = instance.model, instance.profile, 0.0
        if instance.kind[1]:
            least = _latency(search(model, profile, Objective()))
        yield _case("small", str(instance), model, profile, instance.objective(least))


def _on_test_bed(name: str, bed: str, model: Model, profile: Profile) -> Iterator[Case]:
    case = _case("zoo", f"{name}, {bed}", model, profile, Objective())
    yield case
    if name == ENERGY_MODEL:
        yield _case("energy", case.name, model, profile, Objective(goal="energy"))
    if name == DEADLINE_MODEL:
        deadline_ms = DEADLINE * 1e3 * _latency(search(model, profile, Objective(), case.known))
        yield _case("deadline", case.name, model, profile, Objective(goal="energy", deadline_ms=deadline_ms))


def _latency(plan: Plan) -> float:
    assert plan.predicted is not None
    return plan.predicted.latency_seconds


def _case(group: str, name: str, model: Model, profile: Profile, objective: Objective) -> Case:
    known = sorted(named_plans(model, profile, objective), key=lambda plan: rank(plan, objective))
    return Case(group, name, model, profile, objective, tuple(known[:STARTING_PLANS]))


def _planned(case: Case) -> Outcome:
    start = time.process_time()
    plan = search(case.model, case.profile, case.objective, case.known)
    seconds = time.process_time() - start
    assert plan.predicted is not None
    cost = case.objective.cost(plan.predicted.latency_seconds, plan.predicted.energy_joules)
    return Outcome(cost if plan.feasible else math.inf, seconds)


def _losses(outcomes: Sequence[Outcome | None], reference: Sequence[Outcome | None]) -> list[float]:
    """Cost over the reference's cost, case by case, where both plans keep the constraints."""
    pairs = [(a.cost, b.cost) for a, b in zip(outcomes, reference) if a and b]
    return [a / b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]


def _row(name: str, cases: Sequence[Case], outcomes: dict[str, list[Outcome | None]]) -> str:
    """One line of the table: mean and worst loss per group of cases, plans lost, planning time per group."""
    cells = [name]
    for group in GROUPS:
        pairs = [
            (own, full)
            for case, own, full in zip(cases, outcomes[name], outcomes[EVERYTHING])
            if case.group == group and own and full
        ]
        if not pairs:
            cells += ["", ""]
            continue
        losses = _losses(*zip(*pairs)) or [1.0]
        seconds = sum(own.seconds for own, _ in pairs) / max(sum(full.seconds for _, full in pairs), 1e-9)
        cells.append(f"{_percent(statistics.geometric_mean(losses))} / {_percent(max(losses))}")
        cells.append(f"{seconds:.2f}")
    pairs = [(own, full) for own, full in zip(outcomes[name], outcomes[EVERYTHING]) if own and full]
    missed = sum(not math.isfinite(own.cost) and math.isfinite(full.cost) for own, full in pairs)
    return f"| {' | '.join([*cells, str(missed)])} |"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2f} %"


def markdown(cases: Sequence[Case], outcomes: dict[str, list[Outcome | None]]) -> str:
    counts = {group: sum(case.group == group for case in cases) for group in GROUPS}
    heads = [cell for group in GROUPS for cell in (f"{group} ({counts[group]}): loss, mean / worst", "time")]
    lines = [
        "# What each phase of the search is worth",
        "",
        "Each row is the search without one phase. The loss is the predicted cost of the plan against the cost with",
        "all phases, as geometric mean and worst case. Time is CPU time of the search against the time with all",
        "phases. `missed` counts cases in which only the full search meets the constraints.",
        "Made by `python -m benchmarks.ablation`, which describes the cases.",
        "",
        f"| without | {' | '.join(heads)} | missed |",
        f"|---|{'---:|' * (len(heads) + 1)}",
        *(_row(name, cases, outcomes) for name in outcomes if name != EVERYTHING),
        "",
    ]
    return "\n".join(lines)


def _replaced(*changes: tuple[Any, str, Any]) -> Switch:
    """Return a switch that gives attributes of modules other values for a while."""

    @contextlib.contextmanager
    def switch() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name, value in changes:
                stack.enter_context(patch.object(owner, name, value))
            yield

    return switch


def _without_kinds(*kinds: Any) -> Switch:
    return _replaced(
        *((owner, name, tuple(kind for kind in getattr(owner, name) if kind not in kinds))
          for owner, name in ((local_search, "KINDS"), (local_search, "NEAR"), (multistart, "NEAR")))
    )  # fmt: skip


def _space_with(change: Callable[[space.SearchSpace], space.SearchSpace]) -> Switch:
    made = space.SearchSpace.of

    def of(table: CostTable, objective: Objective) -> space.SearchSpace:
        return change(made(table, objective))

    return _replaced((space.SearchSpace, "of", of))


def _start_itself(evaluator: Any, start: Any, *_: Any, **__: Any) -> Any:
    return start


def _nothing(*_: Any, **__: Any) -> tuple[()]:
    return ()


def _plain_option_sets(table: CostTable, objective: Objective) -> list[TransferOptions]:
    return [options for options in option_sets(table, objective) if not options.halo_first]


def _order_without_links(flow: Flow, table: CostTable) -> link_order.Order:
    return link_order.Order((), (), (), link_order.order_of(flow, table).seconds)


SMALL = ("small",)
PHASES: dict[str, Phase] = {
    "Pareto paths": Phase(_replaced((auto, "_front", _nothing)), TRADED),
    "tighter deadlines": Phase(_replaced((auto, "TIGHTER", (1.0,))), ("deadline", "small")),
    "weights of a joule: 3 of 5": Phase(_replaced((auto, "WEIGHTS", (0.1, 1.0, 10.0))), TRADED),
    "weights of a joule: 1 of 5": Phase(_replaced((auto, "WEIGHTS", (1.0,))), TRADED),
    "multistart: several shortest paths": Phase(_replaced((multistart, "shortest_paths", _nothing)), SMALL),
    "multistart: beam search": Phase(_replaced((multistart, "BEAM_SEARCHES", ())), SMALL),
    "multistart: beam search with transfer price 2": Phase(
        _replaced((multistart, "BEAM_SEARCHES", ((1.0, True), (1.0, False)))), SMALL
    ),
    "multistart: beam search without halo first": Phase(
        _replaced((multistart, "BEAM_SEARCHES", ((1.0, True),))), SMALL
    ),
    "multistart: starts of distinct structure": Phase(
        _replaced((multistart, "_starts", lambda drafts: list(drafts))), SMALL
    ),
    "multistart: starts other than the best": Phase(_replaced((multistart, "NEAR_SHARE", 0.0)), SMALL),
    "multistart: layouts of the best plans": Phase(_replaced((multistart, "_around", _nothing)), SMALL),
    "multistart: other cuts, same shares": Phase(_replaced((multistart, "_recut", _nothing)), SMALL),
    "strips in every order": Phase(_space_with(lambda made: replace(made, unordered=())), SMALL),
    "local search: rows of several stages": Phase(_without_kinds(local_search._bands), SMALL),
    "local search: grids": Phase(_without_kinds(local_search._grids)),
    "local search: parts of stages": Phase(_replaced((local_search, "_windows", _nothing))),
    "forced inclusion": Phase(_replaced((auto, "_include_unused", lambda *_: None))),
    "used devices alone": Phase(_replaced((auto, "_search_used", lambda *_: None))),
    "transfer price 2": Phase(
        _replaced((auto, "TRANSFERS", (1.0, 0.5)), (multistart, "TRANSFERS", (1.0, 0.5))), ("zoo", "small")
    ),
    "transfer prices other than 1": Phase(
        _replaced((auto, "TRANSFERS", (1.0,)), (multistart, "TRANSFERS", (1.0,))), ("zoo", "small")
    ),
    "drafts with effective link rates": Phase(
        _space_with(lambda made: replace(made, costs=made.costs[:1], unordered=made.unordered[:1])), LARGE
    ),
    "layouts on whole rows": Phase(_replaced((layout, "MOST_ON_ROWS", 0))),
    "starts other than the best": Phase(_replaced((auto, "REFINED", 1)), LARGE),
    "fair rounding": Phase(_replaced((auto, "fair", lambda table, _, stages: auto.nearest(table.model, stages)))),
    "link order in the programme": Phase(_replaced((linear_programme, "order_of", _order_without_links))),
    "convex programme": Phase(_replaced((auto, "refine", lambda evaluator, _, evaluated, *__: evaluated))),
    "transfer options per stage": Phase(
        _replaced(
            (auto, "improve_transfer_options", _start_itself), (multistart, "improve_transfer_options", _start_itself)
        )
    ),
    "local search: cuts": Phase(_without_kinds(local_search._cuts)),
    "local search: rows": Phase(_without_kinds(local_search._rows, local_search._bands)),
    "halo first": Phase(
        _replaced(
            (space, "option_sets", _plain_option_sets),
            (forced_inclusion, "option_sets", _plain_option_sets),
            (multistart, "BEAM_SEARCHES", tuple(kind for kind in multistart.BEAM_SEARCHES if not kind[1])),
        )
    ),
    "named schemes' plans": Phase(
        _replaced((sys.modules[__name__], "search", lambda m, p, o, known=(): auto.search(m, p, o)))
    ),
    "local search": Phase(
        _replaced((auto, "local_search", _start_itself), (multistart, "local_search", _start_itself))
    ),
    "multistart": Phase(_replaced((space, "is_small", lambda *_: False)), SMALL),
}


if __name__ == "__main__":
    main()
