"""Operations entry by entry as expressions in C."""

from __future__ import annotations

import numpy as np

from mlxopt.engine._graph import Node, Unsupported

_CTYPES = {
    "bool": "uint8_t",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float32": "float",
    "float64": "double",
}
_INFIX = {
    "Add": "+",
    "Subtract": "-",
    "Multiply": "*",
    "Equal": "==",
    "NotEqual": "!=",
    "Less": "<",
    "LessEqual": "<=",
    "Greater": ">",
    "GreaterEqual": ">=",
}
# Functions of runtime.h, with the letter f or d for the dtype.
_FUNCTIONS = {
    "ArcCos": "acos",
    "ArcCosh": "acosh",
    "ArcSin": "asin",
    "ArcSinh": "asinh",
    "ArcTan": "atan",
    "ArcTan2": "atan2",
    "ArcTanh": "atanh",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "ErfInv": "erfinv",
    "Exp": "exp",
    "Expm1": "expm1",
    "Log": "log",
    "Log10": "log10",
    "Log1p": "log1p",
    "Log2": "log2",
    "LogAddExp": "logaddexp",
    "Power": "pow",
    "Remainder": "remainder",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sin": "sin",
    "Sinh": "sinh",
    "Tan": "tan",
    "Tanh": "tanh",
}
_BUILTIN = {"Abs": "fabs", "Ceil": "ceil", "Floor": "floor", "Sqrt": "sqrt"}


def ctype(dtype: np.dtype) -> str:
    """Return the type of an entry in C."""
    return _CTYPES[dtype.name]


def expression(node: Node, x: list[str], dtypes: list[np.dtype]) -> str:
    """Return an operation on the operands `x` as C.

    Raises:
        Unsupported: there is none for the dtype.
    """
    op, dtype = node.op, node.dtype
    is_float = dtype.kind == "f"
    letter, suffix = ("f", "f") if dtype.itemsize == 4 else ("d", "")
    if op == "Broadcast":
        return x[0]
    if op == "Cast":
        return f"{x[0]} != 0" if dtype.kind == "b" else f"({ctype(dtype)}){x[0]}"
    if op in _INFIX:
        return f"{x[0]} {_INFIX[op]} {x[1]}"
    match op:
        case "Select":
            return f"{x[0]} ? {x[1]} : {x[2]}"
        case "Negative":
            return f"-{x[0]}"
        case "Sign":
            return f"({x[0]} > 0) - ({x[0]} < 0)"
        case "Square":
            return f"{x[0]} * {x[0]}"
        case "Maximum":
            return f"{x[0]} > {x[1]} || {x[0]} != {x[0]} ? {x[0]} : {x[1]}"
        case "Minimum":
            return f"{x[0]} < {x[1]} || {x[0]} != {x[0]} ? {x[0]} : {x[1]}"
        case "LogicalNot":
            return f"!{x[0]}"
        case "LogicalAnd":
            return f"({x[0]} != 0) & ({x[1]} != 0)"
        case "LogicalOr":
            return f"({x[0]} != 0) | ({x[1]} != 0)"
    if is_float and dtypes[0] == dtype:
        match op:
            case "Divide":
                return f"{x[0]} / {x[1]}"
        if op in _BUILTIN:
            return f"{_BUILTIN[op]}{suffix}({x[0]})"
        if op in _FUNCTIONS:
            return f"{_FUNCTIONS[op]}_{letter}({', '.join(x)})"
    if op == "Abs" and dtype.kind == "i":
        return f"{x[0]} < 0 ? -{x[0]} : {x[0]}"
    raise Unsupported(f"{op} of {dtypes[0].name}")


def neutral(kind: int, dtype: np.dtype) -> str:
    """Return what a reduction begins with: 0 and, 1 or, 2 sum, 3 product, 4 least, 5 largest."""
    if kind in (4, 5):
        if dtype.kind == "f":
            return "INFINITY" if kind == 4 else "-INFINITY"
        if dtype.kind == "b":
            return "1" if kind == 4 else "0"
        info = np.iinfo(dtype)
        return str(info.max if kind == 4 else info.min) + ("ULL" if dtype.kind == "u" else "")
    return {0: "1", 1: "0", 2: "0", 3: "1"}[kind]


def accumulation(kind: int, target: str, value: str) -> str:
    """Return the statement that adds a value to a reduction."""
    match kind:
        case 0:
            return f"{target} &= {value} != 0;"
        case 1:
            return f"{target} |= {value} != 0;"
        case 2:
            return f"{target} += {value};"
        case 3:
            return f"{target} *= {value};"
    sign = "<" if kind == 4 else ">"
    return f"{target} = {value} {sign} {target} || {value} != {value} ? {value} : {target};"
