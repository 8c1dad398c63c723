"""Corrections of a profile by what frames have shown: a factor for each layer on each device, a delay of the links.

Layers are measured one by one, with made-up neighbours. In the frames of a plan they may take longer or shorter: caches
hold other data, other devices use the same memory, the processor has another temperature. The frames of a few plans
show how much, stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, FiniteFloat

from coedge.core.record import Record
from coedge.execution.program import Work
from coedge.profile.profile import DeviceProfile, Profile, scaled

# Cost of a factor that is twice the device's common factor, in squared relative errors of a stage.
RIDGE = 0.1
LEAST_FACTOR, MOST_FACTOR = 0.2, 5.0


Factor = Annotated[float, Field(ge=LEAST_FACTOR, le=MOST_FACTOR)]


@dataclass(frozen=True, slots=True)
class StageObservation:
    """The measured time of a device for one stage of a plan.

    Attributes:
        computed: the rows of each layer, in order, of every computation of the stage.
        seconds: of all of them together.
    """

    device: str
    computed: tuple[tuple[Work, ...], ...]
    seconds: float


class Correction(Record):
    """A correction of a profile.

    Attributes:
        factors: of the kernel times, by device, one per layer.
        delay_seconds: added to the latency of every link; may be negative.
    """

    factors: Mapping[str, tuple[Factor, ...]] = {}
    delay_seconds: FiniteFloat = 0.0

    def of(self, profile: Profile) -> Profile:
        """Return the corrected profile. Devices that the correction does not know stay as they are."""
        links = tuple(
            link.model_copy(update={"latency_seconds": max(link.latency_seconds + self.delay_seconds, 0.0)})
            for link in profile.links
        )
        devices = tuple(self._device(device) for device in profile.devices)
        return profile.model_copy(update={"devices": devices, "links": links})

    def _device(self, device: DeviceProfile) -> DeviceProfile:
        factors = self.factors.get(device.name, (1.0,) * len(device.layers))
        return device.model_copy(
            update={
                "layers": tuple(scaled(time, factor) for time, factor in zip(device.layers, factors)),
                "fused": tuple(scaled(time, factor) for time, factor in zip(device.fused, factors)),
            }
        )


def kernel_factors(device: DeviceProfile, observed: Iterable[StageObservation]) -> tuple[float, ...]:
    """Return the factor of each layer's time that explains the observed stages of a device.

    Least squares of relative errors. A ridge pulls the factors to the one that fits all stages best, which layers that
    no stage has get too. A stage counts with its part of the device's time.
    """
    stages = [one for one in observed if one.seconds > 0 and one.computed]
    count = len(device.layers)
    if not stages:
        return (1.0,) * count
    parts = np.zeros((len(stages), count))
    for row, stage in enumerate(stages):
        for computed in stage.computed:
            for place, work in enumerate(computed):
                ends_stage = place == len(computed) - 1
                parts[row, work.layer] += device.layer_time(work.layer, ends_stage).seconds(work.rows)
    seconds = np.array([stage.seconds for stage in stages])
    predicted = parts.sum(axis=1)
    if predicted.sum() <= 0:
        return (1.0,) * count
    common = float(seconds.sum() / predicted.sum())
    weights = np.sqrt(seconds / seconds.sum() * len(stages))
    terms = np.vstack([parts / seconds[:, None] * weights[:, None], np.sqrt(RIDGE) * np.eye(count) / common])
    wanted = np.concatenate([weights, np.full(count, np.sqrt(RIDGE))])
    solved = np.linalg.lstsq(terms, wanted, rcond=None)[0]
    return tuple(float(factor) for factor in np.clip(solved, LEAST_FACTOR, MOST_FACTOR))
