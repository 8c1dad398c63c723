"""All questions to one machine in one object: in this process, or as an actor on a Ray node."""

from __future__ import annotations

from orchestrator.doctor.node_probe import NodeProbe
from orchestrator.doctor.tcp_probe import TcpProbe


class Examiner(NodeProbe, TcpProbe):
    """What an examination asks a machine."""
