"""The backward pass over a run of nodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples, zoo_model

from coedge.core.region import Interval, Region
from coedge.graph.receptive_field import backward_pass
from coedge.plan.tiles import tile_of

NETS = ["mobilenet_v3", "unet", "squeezenet", "ssd"]


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
@examples(25)
def test_rows_regions_and_tiles_agree(name: str, data: st.DataObject) -> None:
    """The rows of a pass over regions are those of a pass over rows, and a tile reads the regions of the pass."""
    model = zoo_model(name)
    first = data.draw(st.integers(0, len(model.layers) - 1), "first layer")
    last = data.draw(st.integers(first, min(first + 6, len(model.layers) - 1)), "last layer")
    tensor = model.graph.tensors[model.layers[last].tensor]
    start = data.draw(st.integers(0, tensor.rows - 1), "first row")
    rows = Interval(start, data.draw(st.integers(start + 1, tensor.rows), "stop row"))
    start, stop = model.layers[first].first, model.layers[last].stop
    wanted = {tensor.name: Region.of(rows, Interval(0, tensor.cols))}

    regions_read: dict[str, Region] = {}
    fields = list(backward_pass(reversed(model.backward_regions[start:stop]), wanted, regions_read))
    rows_read: dict[str, Interval] = {}
    for layer in reversed(model.layers[first : last + 1]):  # continued layer by layer
        list(backward_pass(reversed(model.backward_rows[layer.first : layer.stop]), {tensor.name: rows}, rows_read))

    assert rows_read == {name: region.rows for name, region in regions_read.items()}
    tile, held = tile_of(model, start, stop, wanted)
    assert {name: held[name] for name in tile.inputs} == regions_read
    assert [node.node for node in tile.nodes] == [field.rule.index for field in reversed(fields)]
    made = {name for node in model.graph.nodes[start:stop] for name in node.outputs}
    assert not made & regions_read.keys()


def test_a_3x3_convolution_needs_a_halo_row_on_either_side() -> None:
    model = zoo_model("unet")
    node = next(n for n, rule in zip(model.graph.nodes, model.rules) if n.op == "Conv" and rule.kind == "window")
    rule = model.backward_rows[node.index]
    reads: dict[str, Interval] = {}
    (field,) = backward_pass([rule], {rule.outputs[0]: Interval(4, 8)}, reads)
    assert field.computed == Interval(4, 8)
    assert reads == {node.inputs[0]: Interval(3, 9)}


def test_a_node_of_no_needed_output_is_skipped() -> None:
    model = zoo_model("squeezenet")
    reads = {"elsewhere": Interval(0, 1)}
    assert list(backward_pass(reversed(model.backward_rows), {}, reads)) == []
    assert reads == {"elsewhere": Interval(0, 1)}
