"""Builds an ONNX graph; the only module that uses the package onnx."""

from typing import Any

import numpy as np

from nin_jax.errors import UserError
from nin_jax.version import __version__

FLOAT, INT32, BOOL = 1, 6, 9  # of onnx.TensorProto, for the attribute of Cast
OPSET, IR_VERSION = 18, 9  # ONNX 1.14, 2023: runtimes since then read it


class Writer:
    """Collects nodes and constants. Values are identified by strings, as in ONNX."""

    def __init__(self, outer: 'Writer | None' = None):
        self._onnx = _onnx()
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._outer = outer  # of the branch of an If, whose names are to differ from the graph's
        self._count = 0

    def _new_name(self) -> str:
        if self._outer is not None:
            return self._outer._new_name()
        self._count += 1
        return f'v{self._count}'

    def constant(self, value: Any) -> str:
        """Adds an array."""
        name = self._new_name()
        self._constants.append(self._onnx.numpy_helper.from_array(np.array(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output; returns the name of the output, a new one by default."""
        output = output or self._new_name()
        self._nodes.append(self._onnx.helper.make_node(op, inputs, [output], **attributes))
        return output

    def conv(
        self,
        x: str,
        kernel_HWIO: np.ndarray,
        bias_O: np.ndarray,
        output: str | None = None,
        *,
        pad: int = 0,
        stride: int = 1,
        group: int = 1,
    ) -> str:
        """Adds a convolution on (B, C, H, W) with symmetric zero padding."""
        kernel = self.constant(np.ascontiguousarray(kernel_HWIO.transpose(3, 2, 0, 1)))
        return self.node(
            'Conv',
            [x, kernel, self.constant(bias_O)],
            output,
            kernel_shape=kernel_HWIO.shape[:2],
            pads=[pad] * 4,
            strides=[stride] * 2,
            group=group,
        )

    def branch(self, output: str) -> Any:
        """Returns the nodes so far as a graph without inputs, for a branch of an If."""
        value = self._onnx.helper.make_empty_tensor_value_info(output)
        return self._onnx.helper.make_graph(self._nodes, output, [], [value], self._constants)

    def model(
        self,
        *,
        inputs: dict[str, tuple[type, tuple[int | str, ...]]],
        outputs: dict[str, int],
        metadata: dict[str, str],
    ) -> bytes:
        """Returns the checked and serialized model.

        Args:
          inputs: {name: (dtype, shape)}; a string in a shape stands for any size.
          outputs: {name: rank}; all are float32.
          metadata: the model's metadata_props.
        """
        helper, types = self._onnx.helper, self._onnx.TensorProto
        graph = helper.make_graph(
            self._nodes,
            'network_in_network',
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
                )
                for name, (dtype, shape) in inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, types.FLOAT, [None] * rank)
                for name, rank in outputs.items()
            ],
            self._constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid('', OPSET)],
            ir_version=IR_VERSION,
            producer_name='nin_jax',
            producer_version=__version__,
        )
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise UserError("ONNX needs two more packages: pip install -e '.[onnx]'") from None
    return onnx
