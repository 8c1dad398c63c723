"""Measure the reference profile: layer times and codecs on one core of this machine, for synthetic devices.

Every network is captured as by the command line (uint8 input) and measured layer by layer, in rounds over all networks.
A disturbance of some seconds thus affects one round at most. The median over the rounds is kept for each layer.

`python -m benchmarks.reference [--rounds 3] [--folder coedge/data/reference] [NAME ...]`, about three minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coedge import zoo
from coedge.core.package_data import REFERENCE_TIMES
from coedge.graph.model import Model
from coedge.profile.layer_work import layer_costs
from coedge.profile.profile import CodecSpeed, LayerTime
from coedge.profile.reference_times import ReferenceModel, leaving, reference_times
from orchestrator.cli.models import load_image, load_model, photograph
from workers.calibration.activations import sample_activations
from workers.calibration.layer_times import measure_layers
from workers.transport.codecs import measure_codecs

DIGITS = 4
# Speed of the emulated device that is measured. Only its computing times count, not its waiting.
SPEED = 0.3
Times = tuple[list[LayerTime], list[LayerTime]]
Codecs = tuple[dict[str, CodecSpeed], dict[str, dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="network of the zoo; all networks by default")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of measurements per network")
    parser.add_argument("--budget", type=float, default=5.0, help="approximate seconds per measurement")
    parser.add_argument("--folder", type=Path, default=REFERENCE_TIMES, help="folder for the files, one per network")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in zoo.NAMES]
    if unknown or options.rounds < 1:
        parser.error(f"not in the zoo: {', '.join(unknown)}" if unknown else "--rounds is at least 1")
    say = _clocked()
    options.folder.mkdir(parents=True, exist_ok=True)
    models: dict[str, Model] = {}
    codecs: dict[str, Codecs] = {}
    for name in options.names or zoo.NAMES:
        models[name] = model = load_model(name, zoo.example(name).shape[-1])
        samples = sample_activations(model, [load_image(photograph(), model)], 1)
        codecs[name] = measure_codecs(samples, options.budget / 5)
        say(f"captured {name}: {len(models[name].layers)} layers")
    rounds: list[dict[str, Times]] = []
    for number in range(1, options.rounds + 1):
        rounds.append({})
        for name, model in models.items():
            times = measure_layers(model, 1, SPEED, options.budget)
            rounds[-1][name] = (list(times.layers), list(times.fused))
            say(f"round {number} of {options.rounds}: {name}")
    for name, model in models.items():
        text = reference_file(model, _medians(model, [done[name] for done in rounds]), codecs[name])
        (options.folder / f"{name}.json").write_text(text, encoding="utf-8")
    say(f"wrote {len(models)} files to {options.folder}")
    compare(models, options.folder)


def compare(models: Mapping[str, Model], folder: Path) -> None:
    """Print how well the time of each network follows from the measurements of all the others."""
    files = sorted(folder.glob("*.json"))
    known = {path.stem: ReferenceModel.model_validate_json(path.read_text(encoding="utf-8")) for path in files}
    if len(known) < 2:
        return
    print(f"\n{'ms of one core':16} measured   from the others")
    errors = []
    for name, model in models.items():
        measured = known[name].seconds
        guessed = reference_times(model, {other: known[other] for other in known if other != name}).seconds
        errors.append(abs(guessed / measured - 1))
        print(f"{name:16} {measured * 1e3:8.2f}   {guessed * 1e3:8.2f}  {guessed / measured - 1:+5.0%}")
    print(f"error: median {statistics.median(errors):.0%}, largest {max(errors):.0%}")


def _medians(model: Model, rounds: Sequence[Times]) -> Times:
    """Return, for each layer, the round with the median time for all of its rows."""

    def median(times: Sequence[LayerTime], rows: int) -> LayerTime:
        return sorted(times, key=lambda time: time.seconds(rows))[(len(times) - 1) // 2]

    rows = [layer.rows for layer in model.layers]
    ends, inside = (
        [median(times, count) for times, count in zip(zip(*(done[which] for done in rounds)), rows)] for which in (0, 1)
    )
    return ends, inside


def reference_file(model: Model, times: Times, codecs: Codecs) -> str:
    """Return the JSON of a `ReferenceModel` with a line per layer."""
    taken, (speeds, ratios) = model.inputs[0], codecs
    packed = {name: {codec: _rounded(ratio) for codec, ratio in known.items()} for name, known in ratios.items()}
    head = {
        "name": model.name,
        "input_shape": taken.shape,
        "input_dtype": taken.dtype,
        "machine": machine(),
        "codecs": {
            codec: {key: _rounded(value) for key, value in speed.model_dump().items()}
            for codec, speed in speeds.items()
        },
        "input_codec_ratios": packed.get(taken.name, {}),
    }
    layers = [
        {
            "cost": _whole(asdict(cost)),
            "layer": [_rounded(layer.fixed_seconds), _rounded(layer.seconds_per_row)],
            "fused": [_rounded(fused.fixed_seconds), _rounded(fused.seconds_per_row)],
            "codec_ratios": [packed.get(name, {}) for name in leaving(model, index)],
        }
        for index, (cost, layer, fused) in enumerate(zip(layer_costs(model), *times, strict=True))
    ]
    lines = [f' "{key}": {json.dumps(value)}' for key, value in head.items()]
    lines.append(' "layers": [\n' + ",\n".join(f"  {json.dumps(layer)}" for layer in layers) + "\n ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def machine() -> dict[str, str]:
    """Return the properties of the machine that the times depend on, without host names."""
    import numpy
    import onnxruntime

    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor or platform.machine(),
        "threads": "1",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
        "measured": time.strftime("%Y-%m-%d"),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _whole(cost: dict[str, Any]) -> dict[str, Any]:
    return {key: int(value) if isinstance(value, float) else value for key, value in cost.items()}


def _clocked() -> Callable[[str], None]:
    began = time.monotonic()
    return lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


if __name__ == "__main__":
    main()
