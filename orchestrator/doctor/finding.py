"""One line of the examination's result."""

from __future__ import annotations

import re
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


def commands_in(message: str) -> str:
    """Return the commands that a message about tokens names: they stand in backquotes, and are for the shell."""
    quoted = re.findall(r"`([^`]+)`", message)
    commands = [text for text in quoted if text.startswith(("export ", "ray stop"))]
    where = "   (`ray get-auth-token` shows the token on the head)" if "ray get-auth-token" in quoted else ""
    return "; ".join(commands) + where
