"""Comparison of a captured network with what it was made from: an older ONNX file, or a torch program."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from coedge.core.errors import CaptureError, innermost_message
from coedge.core.onnx_session import session_options
from coedge.core.values import relative_difference
from coedge.graph.large_weights import session_of, without_initializers

# Differences relative to the largest value of a tensor. Up to the first, values agree: kernels sum in another order.
# Up to the second, a kernel is less precise than torch's. Beyond it, an operator does something else.
PRECISE, SAME_OPERATOR = 1e-4, 1e-3
# A small difference of their input can change the output of these by a whole step.
_STEPS = frozenset(
    (
        "ArgMax", "ArgMin", "Cast", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod",
        "NonMaxSuppression", "NonZero", "QuantizeLinear", "DynamicQuantizeLinear", "Round", "Sign", "TopK",
    )
)  # fmt: skip


def check_conversion(written: onnx.ModelProto, feeds: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Check that a model which was converted to the current opset computes the same as before.

    ONNX Runtime has no kernels for some operators of the oldest versions. Such a model is not checked.

    Args:
        written: before the conversion.
        outputs: of the converted model, on the same inputs.

    Raises:
        CaptureError: an output differs.
    """
    try:
        session = session_of(written, 1, session_options(1, "basic"))
    except Exception:
        return
    try:
        before = session.run(None, feeds)
    except Exception as error:
        raise CaptureError(f"the network does not run: {innermost_message(error)}") from error
    for name, old, new in zip(session.outputs, before, outputs):
        if relative_difference(new, old) > SAME_OPERATOR:
            raise CaptureError(
                f"output {name!r} changes when the model is converted to a current opset; export the model again "
                "with a current exporter"
            )


class TorchReference:
    """The torch program that an ONNX graph was exported from.

    Args:
        program: the decomposed `torch.export.ExportedProgram`. Its nodes give the values of the graph their names.
        exported: the graph.
    """

    def __init__(self, program: Any, exported: onnx.ModelProto) -> None:
        self._program, self._exported = program, exported

    def check(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Compare the outputs of the captured network with those of the torch program.

        A kernel that is merely less precise gives a warning.

        Args:
            feeds: the inputs, by name, in order.

        Raises:
            CaptureError: an operator computes something else; names the first value that differs.
        """
        import torch
        from torch.utils import _pytree

        module = self._program.module()
        inputs = [torch.from_numpy(np.array(value)) for value in feeds.values()]
        with torch.no_grad():
            expected, _ = _pytree.tree_flatten(module(*inputs))
        worst = max((relative_difference(a, _array(b)) for a, b in zip(outputs, expected)), default=0.0)
        if worst <= PRECISE:
            return
        name, operator, apart = self._first_difference(module, inputs, feeds)
        shown = f"{name!r}, made by {operator}," if name else "an output"
        apart = apart if name else worst
        text = f"{shown} differs from torch by {apart:.1e} of its largest value"
        if apart > SAME_OPERATOR and operator not in _STEPS:
            raise CaptureError(
                f"{text}: ONNX Runtime computes {operator or 'it'} otherwise; write this operation of the module "
                "another way (for a resize: an integer scale factor, or mode='bilinear')"
            )
        warnings.warn(f"{text}; split and unsplit output agree with ONNX Runtime's", stacklevel=2)

    def _first_difference(
        self, module: Any, inputs: Sequence[Any], feeds: Mapping[str, np.ndarray]
    ) -> tuple[str, str, float]:
        """Return name, operator and difference of the first value that differs. Empty names: it is not known."""
        import torch

        values: dict[str, np.ndarray] = {}

        class Recorder(torch.fx.Interpreter):
            def run_node(self, n: Any) -> Any:
                value = super().run_node(n)
                if isinstance(value, torch.Tensor):
                    values[n.name] = _array(value)
                return value

        with torch.no_grad():
            Recorder(module).run(*inputs)
        probe = without_initializers(self._exported, ())
        made = {name: node.op_type for node in probe.graph.node for name in node.output if name in values}
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        session = session_of(probe, 1, session_options(1, "none"))
        given = dict(zip((value.name for value in probe.graph.input), feeds.values()))
        for name, value in zip(session.outputs, session.run(None, given)):
            apart = relative_difference(value, values[name])
            if apart > PRECISE:
                return name, made[name], apart
        return "", "", 0.0


def _array(value: Any) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().numpy()
    return array
