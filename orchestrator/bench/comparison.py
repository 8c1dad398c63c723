"""A comparison of schemes: its cases, its raw samples, and the folder that keeps them.

FOLDER/comparison.json     environment, configuration, and a case per model and scheme
FOLDER/samples.csv         a line per frame; tables and pictures are made from it
FOLDER/profiles/MODEL.json, FOLDER/plans/MODEL.SCHEME.json, FOLDER/timelines/MODEL.SCHEME.json.gz
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from coedge.core.errors import CoEdgeError
from coedge.core.json_file import load_json, save_json
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline

COMPARISON, SAMPLES = "comparison.json", "samples.csv"
_COLUMNS = ("model", "scheme", "frame", "seconds", "joules", "difference", "sent_nbytes")


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured frame.

    Attributes:
        frame: index among the frames of its model and scheme, from 0.
        seconds: latency as the client sees it.
        joules: modelled from measured times; None if a device did not report its steps.
        difference: largest |output - unsplit output| over the largest |unsplit output|.
        sent_nbytes: bytes after encoding, without headers, by "sender>receiver"; None as for `joules`.
    """

    model: str
    scheme: str
    frame: int
    seconds: float
    joules: float | None
    difference: float
    sent_nbytes: Mapping[str, int] | None


class Case(BaseModel):
    """A scheme on a model, or the whole model on one device.

    Attributes:
        devices: devices with work.
        predicted_seconds, predicted_joules, bound_seconds: per frame; None if unknown.
        alone: whether the whole model runs on one device that already has the input, so that no link counts.
        same_as: scheme with the same plan whose samples are shared; empty if the case has its own samples.
        problem: reason why samples are missing; empty if none are.
        note: remark for readers of the row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    scheme: str
    devices: tuple[str, ...] = ()
    predicted_seconds: float | None = None
    predicted_joules: float | None = None
    bound_seconds: float | None = None
    alone: bool = False
    same_as: str = ""
    problem: str = ""
    note: str = ""


class Comparison(BaseModel):
    """A comparison without its samples.

    Attributes:
        cluster: description of the cluster, such as the path of its configuration.
        config: configuration of the cluster.
        begun: local time of the start.
        frames: measured frames per plan.
        size: height and width of the images.
        energy_source: description of where the joules come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster: str
    config: dict[str, Any]
    environment: dict[str, Any]
    begun: str
    frames: int
    size: int
    energy_source: str = ""
    cases: tuple[Case, ...] = ()


def save(comparison: Comparison, samples: Iterable[Sample], folder: Path) -> None:
    """Write a comparison and its samples to a folder, and replace those in it."""
    save_json(comparison, folder / COMPARISON)
    with (folder / SAMPLES).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for s in samples:
            joules = "" if s.joules is None else f"{s.joules:.6g}"
            sent = "" if s.sent_nbytes is None else _links(s.sent_nbytes)
            writer.writerow((s.model, s.scheme, s.frame, f"{s.seconds:.6g}", joules, f"{s.difference:.3g}", sent))


def save_artifacts(
    folder: Path, model_name: str, profile: Profile, plans: Mapping[str, Plan], timelines: Mapping[str, Timeline]
) -> None:
    """Write the profile of a model, and the plan and timeline of every scheme, to the folder of a comparison."""
    for kind in ("profiles", "plans", "timelines"):
        (folder / kind).mkdir(exist_ok=True)
    profile.save(folder / "profiles" / f"{model_name}.json")
    for scheme, plan in plans.items():
        plan.save(folder / "plans" / f"{model_name}.{scheme}.json")
    for scheme, timeline in timelines.items():
        timeline.save(folder / "timelines" / f"{model_name}.{scheme}.json.gz")


def load(folder: Path) -> tuple[Comparison, list[Sample]]:
    """Read a comparison and its samples from a folder.

    Raises:
        CoEdgeError: the folder has no comparison, or its files are broken.
    """
    if not (folder / COMPARISON).is_file():
        raise CoEdgeError(
            f"{folder} holds no comparison (there is no {COMPARISON}); make one: coedge bench --out {folder}"
        )
    comparison = load_json(Comparison, folder / COMPARISON, "comparison")
    try:
        with (folder / SAMPLES).open(encoding="utf-8", newline="") as file:
            return comparison, [_sample(row) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError) as error:
        raise CoEdgeError(f"{folder / SAMPLES} is broken ({error!r}); measure again into another folder") from error


def _links(sent: Mapping[str, int]) -> str:
    # Names of devices contain no ">", "=" or blank. "-" means that nothing was sent; an empty cell means unknown.
    return " ".join(f"{link}={nbytes}" for link, nbytes in sorted(sent.items())) or "-"


def _sample(row: Mapping[str, str]) -> Sample:
    sent: dict[str, int] | None = None
    if row["sent_nbytes"]:
        entries: Sequence[str] = [] if row["sent_nbytes"] == "-" else row["sent_nbytes"].split(" ")
        sent = {link: int(nbytes) for link, _, nbytes in (entry.partition("=") for entry in entries)}
    return Sample(
        model=row["model"], scheme=row["scheme"], frame=int(row["frame"]), seconds=float(row["seconds"]),
        joules=float(row["joules"]) if row["joules"] else None, difference=float(row["difference"]),
        sent_nbytes=sent,
    )  # fmt: skip
