"""`coedge devices`: who is there, and how fast."""

from __future__ import annotations

import dataclasses
import json

from coedge.cli.defaults import demo_config
from coedge.cli.options import Cluster, Json, Set


def devices(cluster: Cluster = None, set_: Set = None, as_json: Json = False) -> None:
    """Joins the cluster, measures its devices and links, and shows them.

    Example: coedge devices --cluster configs/demo.yaml
    """
    from coedge.cli.render import console, devices_table
    from orchestrator.cluster import connect

    with connect(cluster or demo_config(), set_ or ()) as joined:
        infos = joined.devices()
    if as_json:
        rows = []
        for info in infos:
            row = {f.name: getattr(info, f.name) for f in dataclasses.fields(info) if f.name != "links"}
            row["links"] = {name: link.model_dump() for name, link in info.links.items()}
            rows.append(row)
        print(json.dumps(rows))
    else:
        console.print(devices_table(infos))
