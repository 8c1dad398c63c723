"""`coedge devices`: the devices and links of a cluster, measured."""

from __future__ import annotations

import dataclasses
import json

from coedge.core.provider import ON_CPU
from orchestrator.cli.defaults import demo_config
from orchestrator.cli.options import Cluster, Json, Set


def devices(cluster: Cluster = None, set_: Set = None, as_json: Json = False) -> None:
    """Measure the devices and links of a cluster and show them.

    Example: coedge devices --cluster configs/demo.yaml
    """
    from orchestrator.cli.console import busy, console
    from orchestrator.cli.device_tables import devices_table
    from orchestrator.cluster.cluster import connect

    with busy("starting and measuring the cluster"):
        connected = connect(cluster or demo_config(), set_ or ())
    with connected:
        infos = connected.devices()
        configured = {d.name: [str(provider) for provider in d.session_providers] for d in connected.config.devices}
    # A configuration without devices uses every node, on its CPU.
    providers = {info.name: configured.get(info.name, [str(provider) for provider in ON_CPU]) for info in infos}
    if as_json:
        rows = []
        for info in infos:
            row = {f.name: getattr(info, f.name) for f in dataclasses.fields(info) if f.name != "links"}
            row["providers"] = providers[info.name]
            row["links"] = {name: link.model_dump() for name, link in info.links.items()}
            rows.append(row)
        print(json.dumps(rows))
    else:
        console.print(devices_table(infos, providers))
