"""The input of planning commands: a saved profile, a test bed or a cluster, less the excluded devices.

Files are read and checked before a model is captured or a device is measured.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from coedge.config.cluster_config import ClusterConfig
from coedge.config.loading import load_config
from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from coedge.profile.testbed import Testbed, load_testbed
from orchestrator.cli import options
from orchestrator.cli.defaults import demo_config


@dataclass(frozen=True)
class PlanningInput:
    """Devices and links to plan on.

    Attributes:
        devices: a saved profile, a test bed or the configuration of a cluster.
        without: names of excluded devices.
        objective, scheme: those of the configuration; the defaults for a profile or a test bed.
        estimate: for a test bed: estimate layer times that are not known, instead of measuring them on this machine.
        budget_seconds: for a test bed: approximate duration of that measurement. None: the default.
    """

    devices: Profile | Testbed | ClusterConfig
    without: tuple[str, ...]
    objective: Objective
    scheme: str
    estimate: bool = False
    budget_seconds: float | None = None

    def profiles(self, model: Model) -> tuple[Profile, Profile]:
        """Return the profile of a model without and with the excluded devices. A cluster is measured.

        Raises:
            PlanError: the profile is of another model, or has no such device.
        """
        full = self._profile(model)
        full.check(model)
        check_without(self.without, full.names, full.source)
        return full.without(self.without), full

    def _profile(self, model: Model) -> Profile:
        if isinstance(self.devices, Profile):
            return self.devices
        if isinstance(self.devices, Testbed):
            from orchestrator.profiling.planning_times import BUDGET_SECONDS, planning_times, profile_of

            budget_seconds = self.budget_seconds or BUDGET_SECONDS
            return profile_of(self.devices, model, planning_times(model, self.estimate, None, budget_seconds))
        from orchestrator.cli.console import busy
        from orchestrator.cluster.cluster import connect

        with busy("starting the cluster"):
            cluster = connect(self.devices)
        with cluster:
            return cluster.profile(model)


def read_input(
    profile: str | None,
    cluster: str | None,
    overrides: Sequence[str] | None,
    without: Sequence[str] | None,
    budget: str | None = None,
    estimate: bool = False,
) -> PlanningInput:
    """Read the devices that the command line names.

    Args:
        profile: path of a saved profile (JSON) or of a test bed (YAML).
        cluster: path of a cluster configuration; the four emulated devices of the demo by default.
        overrides: overrides of the configuration or the test bed, as `key=value`.
        without: names of devices to exclude.
        budget: approximate duration of measuring, such as `20s`.
        estimate: for a test bed: do not measure.

    Raises:
        BadParameter: options exclude each other.
        PlanError: an excluded device does not exist, or is the source.
        ConfigError: see `load_config` and `load_testbed`.
    """
    excluded = tuple(dict.fromkeys(without or ()))
    overrides = options.with_budget(overrides, budget, profile)
    if estimate and not options.is_testbed(profile):
        raise typer.BadParameter("--estimate is for a test bed: --profile FILE.yaml")
    if estimate and budget is not None:
        raise typer.BadParameter("--estimate and --budget exclude each other")
    if profile is None:
        config = load_config(cluster or demo_config(), overrides)
        names = tuple(device.name for device in config.devices)
        if names:  # without names every node of Ray is a device, and they are not known yet
            check_without(excluded, names, config.source)
        return PlanningInput(config, excluded, config.objective, config.scheme)
    if cluster:
        raise typer.BadParameter("--profile and --cluster exclude each other")
    if options.is_testbed(profile):
        testbed = load_testbed(profile, overrides)
        names = tuple(device.name for device in testbed.devices)
        check_without(excluded, names, testbed.source or names[0])
        budget_seconds = None if budget is None else options.seconds(budget, "--budget", "s")
        return PlanningInput(testbed, excluded, Objective(), "auto", estimate, budget_seconds)
    if overrides:
        raise typer.BadParameter(
            "--set overrides a configuration or a test bed (YAML); it has no effect on a saved --profile (JSON)"
        )
    saved = Profile.load(profile)
    check_without(excluded, saved.names, saved.source)
    return PlanningInput(saved, excluded, Objective(), "auto")


def check_without(excluded: Sequence[str], names: Sequence[str], source: str | None) -> None:
    """Check that the excluded devices exist and do not include the source.

    Raises:
        PlanError: with a similar name, or with the options to use instead.
    """
    for name in excluded:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise PlanError(f"--without {name}: there is no such device; devices are {', '.join(names)}.{hint}")
        if name == source:
            raise PlanError(
                f"--without {name}: {name} is the source, which has the input and receives the result, so it cannot be "
                "excluded. Name another source (--set source=...), or exclude other devices"
            )


def check_keep_local(count: int, model: Model) -> None:
    """Check that the model has as many layers as are to stay on the source.

    Raises:
        PlanError: it has fewer.
    """
    if count > len(model.layers):
        raise PlanError(f"--keep-local {count}: {model.name} has only {len(model.layers)} layers")
