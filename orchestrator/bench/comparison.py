"""A comparison: what was run, the raw samples, and the folder that keeps them.

FOLDER/comparison.json     environment, configuration, and a case per model and scheme
FOLDER/samples.csv         a line per frame: all that tables and pictures are made from
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

COMPARISON, SAMPLES = "comparison.json", "samples.csv"
_COLUMNS = ("model", "scheme", "frame", "seconds", "joules", "difference", "sent_nbytes")


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame.

    Attributes:
        frame: of those of its model and scheme that count, from 0.
        seconds: from asked to answered.
        joules: modelled from measured times; None: not all devices told what they did.
        difference: largest |output - unsplit output| over the largest |unsplit output|.
        sent_nbytes: packed, without headers, by "sender>receiver"; None as `joules`.
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
        devices: that take part.
        predicted_seconds, predicted_joules, bound_seconds: of one frame; None: not known.
        alone: the whole model on one device, which has the input: no link counts.
        same_as: the scheme with the same plan that has the samples; "": it has its own.
        problem: why there are no samples, or no more of them; "": all is well.
        note: what somebody who reads the row must know.
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
    """What was run, where and how; the samples are beside it.

    Attributes:
        cluster: where its configuration came from, for people.
        config: the configuration.
        energy_source: whose watts the joules are modelled from.
        begun: local time.
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
    """Writes both, over what was there."""
    save_json(comparison, folder / COMPARISON)
    with (folder / SAMPLES).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for s in samples:
            joules = "" if s.joules is None else f"{s.joules:.6g}"
            sent = "" if s.sent_nbytes is None else _links(s.sent_nbytes)
            writer.writerow((s.model, s.scheme, s.frame, f"{s.seconds:.6g}", joules, f"{s.difference:.3g}", sent))


def load(folder: Path) -> tuple[Comparison, list[Sample]]:
    """What `save` wrote.

    Raises:
        CoEdgeError: the folder holds no comparison, or a broken one.
    """
    if not (folder / COMPARISON).is_file():
        raise CoEdgeError(
            f"{folder} holds no comparison (no {COMPARISON} there); coedge bench --out {folder} makes one"
        )
    comparison = load_json(Comparison, folder / COMPARISON, "comparison")
    try:
        with (folder / SAMPLES).open(encoding="utf-8", newline="") as file:
            return comparison, [_sample(row) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError) as error:
        raise CoEdgeError(f"{folder / SAMPLES} is broken ({error!r}); measure again into another folder") from error


def _links(sent: Mapping[str, int]) -> str:
    # Names of devices have neither ">" nor "=" nor blanks. "-" is nothing sent, which is not the same as not known.
    return " ".join(f"{link}={nbytes}" for link, nbytes in sorted(sent.items())) or "-"


def _sample(row: Mapping[str, str]) -> Sample:
    sent: dict[str, int] | None = None
    if row["sent_nbytes"]:
        parts: Sequence[str] = [] if row["sent_nbytes"] == "-" else row["sent_nbytes"].split(" ")
        sent = {link: int(nbytes) for link, _, nbytes in (part.partition("=") for part in parts)}
    return Sample(
        model=row["model"], scheme=row["scheme"], frame=int(row["frame"]), seconds=float(row["seconds"]),
        joules=float(row["joules"]) if row["joules"] else None, difference=float(row["difference"]),
        sent_nbytes=sent,
    )  # fmt: skip
