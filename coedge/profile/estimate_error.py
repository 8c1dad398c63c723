"""How far off estimated layer times are, from networks that the estimate did not know."""

from __future__ import annotations

from pydantic import Field

from coedge.core.record import Record


class EstimateError(Record):
    """Relative errors of the estimated time of a whole network on one device.

    Attributes:
        median: half of the networks are at most this far off.
        p95: 19 of 20 networks are at most this far off.
    """

    median: float = Field(gt=0)
    p95: float = Field(gt=0)

    @property
    def brief(self) -> str:
        """Return the usual error, for the head of a column or beside a number."""
        return f"±{self.median:.0%}"

    def __str__(self) -> str:
        """Return what is estimated and how well, for people."""
        return (
            f"layer times are estimated, not measured: half of the networks are at most {self.median:.0%} off, "
            f"19 of 20 at most {self.p95:.0%}"
        )
