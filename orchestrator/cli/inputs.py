"""What commands plan on: a saved profile, a test bed or a cluster, less the devices that the user excludes.

Everything is read and checked before a model is captured or a device is measured.
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
from coedge.profile.testbed import Testbed, load_testbed, profile_of
from orchestrator.cli.defaults import demo_config

TESTBED_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Given:
    """One of the three, and who is left out of it.

    Attributes:
        objective, scheme: of the configuration; the defaults for the others.
    """

    given: Profile | Testbed | ClusterConfig
    without: tuple[str, ...]
    objective: Objective
    scheme: str

    def profiles(self, model: Model) -> tuple[Profile, Profile]:
        """The profile of a model to plan on, and the same with the excluded devices. A cluster is measured.

        Raises:
            PlanError: the profile is of another model, or has no such device.
        """
        everybody = self._profile(model)
        everybody.check(model)
        check_without(self.without, everybody.names, everybody.source)
        return everybody.without(self.without), everybody

    def _profile(self, model: Model) -> Profile:
        if isinstance(self.given, Profile):
            return self.given
        if isinstance(self.given, Testbed):
            return profile_of(self.given, model)
        from orchestrator.cluster.cluster import connect

        with connect(self.given) as joined:
            return joined.profile(model)


def read_given(
    profile: str | None, cluster: str | None, overrides: Sequence[str] | None, without: Sequence[str] | None
) -> Given:
    """What the command line names.

    Args:
        profile: path of a saved profile (JSON) or of a test bed (YAML).
        cluster: path of a cluster configuration; by default the demo's four emulated devices.
        overrides: of the configuration or the test bed.
        without: devices to leave out.

    Raises:
        BadParameter: options that do not go together.
        PlanError: no such device, or the source is excluded.
        ConfigError: as `load_config` and `load_testbed`.
    """
    excluded = tuple(dict.fromkeys(without or ()))
    if profile is None:
        config = load_config(cluster or demo_config(), overrides or ())
        names = tuple(device.name for device in config.devices)
        if names:  # otherwise every node of Ray is a device, and who is there is not yet known
            check_without(excluded, names, config.source)
        return Given(config, excluded, config.objective, config.scheme)
    if cluster:
        raise typer.BadParameter("--profile stands for a cluster: no --cluster with it")
    if profile.lower().endswith(TESTBED_SUFFIXES):
        testbed = load_testbed(profile, overrides or ())
        names = tuple(device.name for device in testbed.devices)
        check_without(excluded, names, testbed.source or names[0])
        return Given(testbed, excluded, Objective(), "auto")
    if overrides:
        raise typer.BadParameter("--set changes a configuration or a test bed (YAML); a saved --profile has no keys")
    saved = Profile.load(profile)
    check_without(excluded, saved.names, saved.source)
    return Given(saved, excluded, Objective(), "auto")


def check_without(excluded: Sequence[str], names: Sequence[str], source: str | None) -> None:
    """Refuses to leave out who is not there, or who has the input.

    Raises:
        PlanError: with a near match, or what to do.
    """
    for name in excluded:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise PlanError(f"--without {name}: there is no such device; devices are {', '.join(names)}.{hint}")
        if name == source:
            raise PlanError(
                f"--without {name}: {name} is the source, where the input is and the answer goes, so it cannot be left "
                "out. Name another source (--set source=...), or leave out others"
            )


def check_keep_local(count: int, model: Model) -> None:
    """Raises PlanError where there are fewer layers than are to stay on the source."""
    if count > len(model.layers):
        raise PlanError(f"--keep-local {count}: {model.name} has {len(model.layers)} layers; give at most so many")
