"""One line of the examination's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "red"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found on one node.

    Attributes:
        where: label of the node; empty: the cluster.
        mend: command or setting that mends it. Every red finding has one.
    """

    check: str
    where: str
    level: Level
    text: str
    mend: str = ""
