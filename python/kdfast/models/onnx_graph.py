"""Plain modules (models/plain.py) as ONNX graphs.

The graph is built here, node by node, from a symbolic trace of the module. torch's own exporters were tried
(2.13): the older one is deprecated, the newer one writes opset 18 and above only, and what they accept and
write changes with the version of torch. This way a file depends on the module and the opset alone, the IR
version is one that old runtimes read, and every matrix product is a MatMul by a constant, as quantization
wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from torch import Tensor, fx, nn

from kdfast._version import __version__
from kdfast.errors import ModelError
from kdfast.models.plain import PlainTagger

__all__ = ["INPUT", "OPSETS", "OUTPUT", "onnx_model"]

OPSETS = range(15, 21)
INPUT, OUTPUT = "jets", "logits"


def onnx_model(module: PlainTagger, num_classes: int, opset: int, half: bool) -> ModelProto:
    """The module as an ONNX model: jets [jets, constituents, 4] → logits [jets, num_classes], both float32.

    half: the network in float16; features and standardisation stay in float32. Raises ModelError for a module
    that uses a function without a translation.
    """
    graph = _Graph(opset)
    features, there = graph.add(module.features, "features", (INPUT,))
    if half:
        graph.dtype = np.dtype(np.float16)
        features = graph.node("Cast", features, to=TensorProto.FLOAT16)
    logits = graph.add(module.network, "network", (features, there))
    graph.node("Cast" if half else "Identity", logits, out=OUTPUT, **({"to": TensorProto.FLOAT} if half else {}))
    proto = helper.make_graph(
        graph.nodes,
        "kdfast",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["jets", "constituents", 4])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["jets", num_classes])],
        graph.constants,
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8 if opset < 19 else 9,  # the lowest that goes with the opset
        producer_name="kdfast",
        producer_version=__version__,
    )
    checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants so far. dtype: of numbers that come without one."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.nodes: list[Any] = []
        self.constants: list[TensorProto] = []
        self._known: dict[tuple[Any, ...], str] = {}

    def node(self, op: str, *inputs: Any, out: str | None = None, **attributes: Any) -> str:
        """Appends a node and returns the name of its result. Inputs: names, or numbers of the graph's dtype."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        out = out or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [out], name=out, **attributes))
        return out

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a constant; equal ones are stored once."""
        if isinstance(value, Tensor):
            value = value.detach().numpy()
        array: NDArray[Any] = np.ascontiguousarray(value, dtype or self.dtype).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def axes(self, *axes: int) -> str:
        """Axes, sizes or places as the constant input of a node."""
        return self.constant(list(axes), np.int64)

    def add(self, module: nn.Module, name: str, inputs: Sequence[str]) -> Any:
        """Appends a module; returns the names of its results."""
        try:
            traced = _Tracer().trace(module)
        except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"the {name} can't be traced: {error}", where="ONNX") from None
        return _Appender(fx.GraphModule(module, traced), self).run(*inputs)


class _Tracer(fx.Tracer):
    """Layers of torch are traced to the functions that they call, as the package's own are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


class _Appender(fx.Interpreter):
    """Runs a trace on names of values: what it calls appends nodes to the graph."""

    def __init__(self, module: fx.GraphModule, graph: _Graph) -> None:
        super().__init__(module)
        self.onnx_graph = graph
        self.extra_traceback = False  # it would rewrite the errors

    def call_function(self, target: Any, args: Any, kwargs: Any) -> str:
        name = target if isinstance(target, str) else target.__name__
        if name not in _FUNCTIONS:
            raise ModelError(f"{name} has no translation to ONNX", where="ONNX")
        return _FUNCTIONS[name](self.onnx_graph, *args, **kwargs)

    call_method = call_function


def _linear(graph: _Graph, x: str, weight: Tensor, bias: Tensor) -> str:
    return graph.node("Add", graph.node("MatMul", x, weight.T), bias)


def _layer_norm(graph: _Graph, x: str, sizes: Any, weight: Tensor, bias: Tensor, eps: float) -> str:
    if graph.opset >= 17:
        return graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)
    centred = graph.node("Sub", x, _mean(graph, x))
    variance = _mean(graph, graph.node("Mul", centred, centred))
    scale = graph.node("Sqrt", graph.node("Add", variance, eps))
    return graph.node("Add", graph.node("Mul", graph.node("Div", centred, scale), weight), bias)


def _mean(graph: _Graph, x: str) -> str:
    return graph.node("ReduceMean", x, axes=[-1], keepdims=1)  # before opset 18 an attribute


def _gelu(graph: _Graph, x: str) -> str:
    if graph.opset >= 20:
        return graph.node("Gelu", x)
    error = graph.node("Erf", graph.node("Div", x, 2**0.5))
    return graph.node("Mul", graph.node("Mul", x, graph.node("Add", error, 1.0)), 0.5)


def _elementwise(op: str) -> Callable[..., str]:
    return lambda graph, *inputs: graph.node(op, *inputs)


def _sum(graph: _Graph, x: str, axis: int, keepdim: bool = False) -> str:
    return graph.node("ReduceSum", x, graph.axes(axis), keepdims=int(keepdim))


def _maximum(graph: _Graph, x: str, axis: int, keepdim: bool = False) -> str:
    if graph.opset >= 18:
        return graph.node("ReduceMax", x, graph.axes(axis), keepdims=int(keepdim))
    return graph.node("ReduceMax", x, axes=[axis], keepdims=int(keepdim))


def _join(graph: _Graph, parts: Sequence[str], axis: int) -> str:
    return graph.node("Concat", *parts, axis=axis)


def _stack(graph: _Graph, parts: Sequence[str], axis: int) -> str:
    return _join(graph, [graph.node("Unsqueeze", part, graph.axes(axis)) for part in parts], axis)


def _transpose(graph: _Graph, x: str, first: int, second: int) -> str:
    """Of the last two axes, or of the middle ones of four."""
    order = list(range(4))
    order[first], order[second] = second, first
    return graph.node("Transpose", x, perm=order)


# By the name of the function or method in torch.
_FUNCTIONS: dict[str, Callable[..., str]] = {
    **{name: _elementwise(name.capitalize()) for name in ("abs", "add", "atan", "cos", "log", "mul", "neg", "relu")},
    **{name: _elementwise(name.capitalize()) for name in ("round", "sin", "sinh", "sqrt", "sub", "where")},
    "truediv": _elementwise("Div"),
    "gt": _elementwise("Greater"),
    "lt": _elementwise("Less"),
    "le": _elementwise("LessOrEqual"),
    "clamp": _elementwise("Clip"),
    "matmul": _elementwise("MatMul"),
    "linear": _linear,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    # PlainDeepSets counts constituents by type_as.
    "type_as": lambda graph, x, like: graph.node("Cast", x, to=helper.np_dtype_to_tensor_dtype(graph.dtype)),
    "softmax": lambda graph, x, axis: graph.node("Softmax", x, axis=axis),
    "sum": _sum,
    "amax": _maximum,
    "cat": _join,
    "stack": _stack,
    # 0 in a shape: as it was. Axes are counted from the front, and the last one is split or joined.
    "unflatten": lambda graph, x, axis, sizes: graph.node("Reshape", x, graph.axes(*[0] * axis, *sizes)),
    "flatten": lambda graph, x, axis: graph.node("Reshape", x, graph.axes(*[0] * axis, -1)),
    "unsqueeze": lambda graph, x, axis: graph.node("Unsqueeze", x, graph.axes(axis)),
    "select": lambda graph, x, axis, place: graph.node("Gather", x, graph.constant(place, np.int64), axis=axis),
    "permute": lambda graph, x, *order: graph.node("Transpose", x, perm=list(order)),
    "transpose": _transpose,
}
