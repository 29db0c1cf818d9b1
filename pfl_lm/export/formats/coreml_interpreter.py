"""An interpreter of Core ML programs in numpy: what a written package computes.

A program is a straight line of some dozens of kinds of operation. Values that the program holds
in fp16 are rounded to fp16 after every operation; sums within one are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erf

Values = Mapping[str, Any]


class Program:
    """The main function of a saved ``.mlpackage``.

    Raises:
        ValueError: not a package, or a program with an operation that is not known here.
    """

    def __init__(self, path: Path) -> None:
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            package = ct.models.MLModel(str(path), skip_model_load=True)
            spec = package.get_spec()
            program = load(spec, spec.specificationVersion, package.weights_dir)
        except Exception as error:  # the parser raises whatever it stumbles over
            raise ValueError(f"{path.name}: no readable Core ML package: {error}") from error
        main = program.functions["main"]
        self.outputs = [output.name for output in main.outputs]
        self.constants: dict[str, Any] = {}
        self.steps = []
        for operation in main.operations:
            if operation.op_type == "const":
                self._keep(operation, operation.outputs[0].val)
            elif operation.op_type.startswith("constexpr_"):
                self._keep(operation, operation.materialized_val_inference())
            elif operation.op_type not in OPERATIONS:
                raise ValueError(f"{path.name}: operation {operation.op_type} is not known")
            else:
                self.steps.append(operation)

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the program: inputs by name → outputs by name."""
        known: dict[str, Any] = dict(self.constants) | dict(given)

        def value_of(variable: Any) -> Any:
            if isinstance(variable, tuple | list):
                return [value_of(element) for element in variable]
            return None if variable is None else known[variable.name]

        for operation in self.steps:
            values = {name: value_of(variable) for name, variable in operation.inputs.items()}
            result = OPERATIONS[operation.op_type](values)
            outputs = result if len(operation.outputs) > 1 else [result]
            for variable, value in zip(operation.outputs, outputs, strict=True):
                known[variable.name] = _rounded(np.asarray(value), variable.dtype.__name__)
        return {name: np.asarray(known[name]) for name in self.outputs}

    def _keep(self, operation: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.dtype == np.float16:
            value = value.astype(np.float32)
        self.constants[operation.outputs[0].name] = value


def _rounded(value: np.ndarray, kind: str) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    with np.errstate(over="ignore"):
        return (value.astype(np.float16) if kind == "fp16" else value).astype(np.float32)


def _axes(v: Values, name: str = "axes") -> tuple[int, ...] | None:
    return None if v.get(name) is None else tuple(int(axis) for axis in np.ravel(v[name]))


def _ints(value: Any) -> list[int]:
    return [int(number) for number in np.ravel(value)]


def _matmul(v: Values) -> np.ndarray:
    x, y = v["x"], v["y"]
    x = np.swapaxes(x, -1, -2) if v.get("transpose_x") else x
    y = np.swapaxes(y, -1, -2) if v.get("transpose_y") else y
    return np.asarray(x @ y)


def _linear(v: Values) -> np.ndarray:
    product: np.ndarray = v["x"] @ v["weight"].T
    return product if v.get("bias") is None else product + v["bias"]


def _cast(v: Values) -> np.ndarray:
    kind = {"fp32": np.float32, "fp16": np.float32, "bool": np.bool_}.get(str(v["dtype"]))
    return np.asarray(v["x"]).astype(kind or str(v["dtype"]))


def _split(v: Values) -> list[np.ndarray]:
    if v.get("split_sizes") is not None:
        where: Any = np.cumsum(_ints(v["split_sizes"]))[:-1]
    else:
        where = int(v["num_splits"])
    return list(np.split(v["x"], where, axis=int(v["axis"])))


def _topk(v: Values) -> list[np.ndarray]:
    x, axis = v["x"], int(v["axis"])
    order = np.argsort(x if v.get("ascending") else -x, axis=axis, kind="stable")
    places = np.take(order, range(int(v["k"])), axis=axis)
    return [np.take_along_axis(x, places, axis), places.astype(np.int32)]


def _layer_norm(v: Values) -> np.ndarray:
    x, axes = v["x"], _axes(v)
    centred = x - x.mean(axes, keepdims=True)
    spread = np.sqrt((centred**2).mean(axes, keepdims=True) + float(v["epsilon"]))
    y = centred / spread
    y = y if v.get("gamma") is None else y * v["gamma"]
    return np.asarray(y if v.get("beta") is None else y + v["beta"])


def _softmax(v: Values) -> np.ndarray:
    axis = int(v["axis"])
    shifted = np.exp(v["x"] - v["x"].max(axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis, keepdims=True))


def _gelu(v: Values) -> np.ndarray:
    if str(v.get("mode", "EXACT")) != "EXACT":
        raise ValueError("an approximate gelu: the model's is exact, so the converter changed it")
    return np.asarray(0.5 * v["x"] * (1 + erf(v["x"] / np.sqrt(2))))


def _slice(v: Values) -> np.ndarray:
    begin, end = _ints(v["begin"]), _ints(v["end"])
    stride = _ints(v["stride"]) if v.get("stride") is not None else [1] * len(begin)

    def masked(name: str, axis: int) -> bool:
        return v.get(name) is not None and bool(np.ravel(v[name])[axis])

    cuts: list[Any] = []
    for axis, (low, high, every) in enumerate(zip(begin, end, stride, strict=True)):
        if masked("squeeze_mask", axis):
            cuts.append(low)
        else:
            start = None if masked("begin_mask", axis) else low
            stop = None if masked("end_mask", axis) else high
            cuts.append(slice(start, stop, every))
    return np.asarray(v["x"][tuple(cuts)])


def _scatter(v: Values) -> np.ndarray:
    """Replace whole slices along an axis; what a converter makes of writing into a range."""
    if str(v["mode"]) != "update" or np.ndim(v["indices"]) != 1:
        raise ValueError(f"scatter in mode {v['mode']!r}: only replacing slices is known here")
    x = np.array(v["data"])
    x[(slice(None),) * (int(v["axis"]) % x.ndim) + (_ints(v["indices"]),)] = v["updates"]
    return x


def _pad(v: Values) -> np.ndarray:
    if str(v.get("mode", "constant")) != "constant":
        raise ValueError(f"pad in mode {v['mode']!r}: only a constant is known here")
    pairs = np.reshape(_ints(v["pad"]), (-1, 2)).tolist()
    pairs = [[0, 0]] * (np.ndim(v["x"]) - len(pairs)) + pairs
    return np.pad(v["x"], pairs, constant_values=float(v.get("constant_val") or 0))


def _reduce(function: Callable[..., Any]) -> Callable[[Values], Any]:
    return lambda v: function(v["x"], axis=_axes(v), keepdims=bool(v.get("keep_dims")))


def _binary(function: Callable[..., Any]) -> Callable[[Values], Any]:
    return lambda v: function(v["x"], v["y"])


def _unary(function: Callable[..., Any]) -> Callable[[Values], Any]:
    return lambda v: function(v["x"])


OPERATIONS: dict[str, Callable[[Values], Any]] = {
    "gather": lambda v: np.take(v["x"], v["indices"], axis=int(v["axis"])),
    "linear": _linear,
    "matmul": _matmul,
    "add": _binary(np.add),
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "real_div": _binary(np.divide),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "pow": _binary(np.power),
    "equal": _binary(np.equal),
    "not_equal": _binary(np.not_equal),
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "logical_and": _binary(np.logical_and),
    "logical_or": _binary(np.logical_or),
    "logical_not": _unary(np.logical_not),
    "identity": _unary(np.asarray),
    "sigmoid": _unary(lambda x: 1 / (1 + np.exp(-x))),
    "tanh": _unary(np.tanh),
    "relu": _unary(lambda x: np.maximum(x, 0)),
    "exp": _unary(np.exp),
    "log": lambda v: np.log(v["x"] + (v.get("epsilon") or 0)),
    "sqrt": _unary(np.sqrt),
    "rsqrt": lambda v: 1 / np.sqrt(v["x"] + (v.get("epsilon") or 0)),
    "inverse": lambda v: 1 / (v["x"] + (v.get("epsilon") or 0)),
    "square": _unary(np.square),
    "abs": _unary(np.abs),
    "sign": _unary(np.sign),
    "erf": _unary(erf),
    "gelu": _gelu,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "cast": _cast,
    "clip": lambda v: np.clip(v["x"], v["alpha"], v["beta"]),
    "select": lambda v: np.where(v["cond"], v["a"], v["b"]),
    "split": _split,
    "topk": _topk,
    "reshape": lambda v: np.reshape(v["x"], _ints(v["shape"])),
    "transpose": lambda v: np.transpose(v["x"], _ints(v["perm"])),
    "expand_dims": lambda v: np.expand_dims(v["x"], _axes(v) or 0),
    "squeeze": lambda v: np.squeeze(v["x"], _axes(v)),
    "slice_by_index": _slice,
    "scatter": _scatter,
    "pad": _pad,
    "stack": lambda v: np.stack(v["values"], int(v["axis"])),
    "concat": lambda v: np.concatenate([np.atleast_1d(x) for x in v["values"]], int(v["axis"])),
    "tile": lambda v: np.tile(v["x"], _ints(v["reps"])),
    "fill": lambda v: np.full(_ints(v["shape"]), v["value"]),
    "fill_like": lambda v: np.full(np.shape(v["ref_tensor"]), v["value"]),
    "range_1d": lambda v: np.arange(v["start"], v["end"], v["step"]),
    "reduce_sum": _reduce(np.sum),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_mean": _reduce(np.mean),
}
