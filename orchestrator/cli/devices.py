"""`coedge devices`: who is there, and how fast."""

from __future__ import annotations

import dataclasses
import json

from coedge.core.provider import ON_CPU
from orchestrator.cli.defaults import demo_config
from orchestrator.cli.options import Cluster, Json, Set


def devices(cluster: Cluster = None, set_: Set = None, as_json: Json = False) -> None:
    """Joins the cluster, measures its devices and links, and shows them.

    Example: coedge devices --cluster configs/demo.yaml
    """
    from orchestrator.cli.render import console, devices_table
    from orchestrator.cluster.cluster import connect

    with connect(cluster or demo_config(), set_ or ()) as joined:
        infos = joined.devices()
        on = {device.name: [str(p) for p in device.session_providers] for device in joined.config.devices}
    # Where the configuration names no devices, every node is one, with a CPU.
    providers = {info.name: on.get(info.name, [str(p) for p in ON_CPU]) for info in infos}
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
