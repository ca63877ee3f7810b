"""Covariates computed from label volumes and other columns, declared as text.

    ventricles_ml:  volume(4)
    brain_fraction: volume(2, 3) / volume(1, 2, 3, 4)
    log_ventricles: log(volume(4))

An expression has numbers, names of numeric columns, ``volume(label, ...)`` in ml summed over original label values,
``+ - * /``, parentheses, and ``min max log sqrt``. It is parsed and walked node by node; nothing is ever executed.
A missing operand, a division by zero, a logarithm or root outside its domain, or an overflow gives a missing value.
"""

import ast
import difflib
import math
import operator
import warnings
from collections.abc import Callable, Collection, Mapping

from medgen.cohort.schema import Value
from medgen.errors import InputError

FUNCTIONS = ("volume", "min", "max", "log", "sqrt")
_MAX_LENGTH = 300


def check(expression: str, columns: Collection[str] | None = None, labels: Collection[int] | None = None) -> None:
    """Check an expression before anything runs.

    Args:
        expression: as in the module's examples.
        columns: numeric columns that it may name; None where they are not known yet.
        labels: the cohort's label values; None where they are not known yet.

    Raises:
        InputError: not an expression of this language, an unknown column (names the nearest) or an unknown label.
    """
    for node in ast.walk(_parse(expression)):
        if columns is not None and isinstance(node, ast.Name) and node.id not in {*FUNCTIONS, *columns}:
            near = difflib.get_close_matches(node.id, list(columns), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            listed = ", ".join(sorted(columns)) or "none"
            raise InputError(f"expression '{expression}' names '{node.id}', no numeric column (known: {listed}){hint}")
        if isinstance(node, ast.Call) and labels is not None:
            for label in _labels(node) if _name(node) == "volume" else ():
                if label not in labels:
                    listed = ", ".join(map(str, sorted(labels))) or "none"
                    raise InputError(f"expression '{expression}' asks for label {label} (the cohort has: {listed})")


def evaluate(expression: str, volumes_ml: Mapping[int, float], row: Mapping[str, Value]) -> float | None:
    """The value of an expression for one case; None where it is missing.

    Args:
        expression: as in the module's examples.
        volumes_ml: original label value -> volume; a label that is not here is missing, so give 0 for an absent one.
        row: the case's other covariates.

    Raises:
        InputError: not an expression of this language, or it names a column of words.
    """

    def value(node: ast.AST) -> float | None:
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            found = row.get(node.id)
            if isinstance(found, str):
                raise InputError(f"expression '{expression}' uses '{node.id}', whose values are words, not numbers")
            return None if found is None else float(found)
        if isinstance(node, ast.Call) and _name(node) == "volume":
            parts = [volumes_ml.get(label) for label in _labels(node)]
        elif isinstance(node, ast.Call):
            parts = [value(a) for a in node.args]
        elif isinstance(node, ast.BinOp):
            parts = [value(node.left), value(node.right)]
        else:
            assert isinstance(node, ast.UnaryOp)
            parts = [value(node.operand)]
        numbers = [p for p in parts if p is not None]
        return _apply(node, numbers) if len(numbers) == len(parts) else None

    return value(_parse(expression).body)


def derive(
    expressions: Mapping[str, str], volumes_ml: Mapping[int, float], row: Mapping[str, Value]
) -> dict[str, Value]:
    """The row with the derived columns added, in order: a later one may use an earlier one."""
    result = dict(row)
    for name, expression in expressions.items():
        result[name] = evaluate(expression, volumes_ml, result)
    return result


_CALLS: dict[str, Callable[[list[float]], float]] = {
    "volume": sum,
    "min": min,
    "max": max,
    "log": lambda x: math.log(x[0]),
    "sqrt": lambda x: math.sqrt(x[0]),
}
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _apply(node: ast.AST, x: list[float]) -> float | None:
    try:
        if isinstance(node, ast.Call):
            y = float(_CALLS[_name(node)](x))
        elif isinstance(node, ast.BinOp):
            y = _OPERATORS[type(node.op)](x[0], x[1])
        else:
            assert isinstance(node, ast.UnaryOp)
            y = -x[0] if isinstance(node.op, ast.USub) else x[0]
    except (ZeroDivisionError, ValueError, OverflowError):  # outside the function's domain
        return None
    return y if math.isfinite(y) else None


def _parse(expression: str) -> ast.Expression:
    """Parse and refuse every node outside the language."""
    if not isinstance(expression, str) or not expression.strip():
        raise InputError("a derived covariate needs an expression such as volume(2,3)/volume(1,2,3,4)")
    if len(expression) > _MAX_LENGTH:
        raise InputError(f"the expression '{expression[:40]}...' is longer than {_MAX_LENGTH} characters; split it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # the node check says what is wrong
            tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise InputError(f"'{expression}' is not an expression; write for example volume(4)/volume(1,2,3)") from None
    _allow(tree.body, expression)
    return tree


def _allow(node: ast.AST, expression: str) -> None:
    problem = ""
    children: list[ast.AST] = []
    if isinstance(node, ast.Constant):
        number = isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
        problem = "" if number and abs(node.value) < 1e100 else f"the value {node.value!r}"  # type: ignore[arg-type]
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        children = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        children = [node.operand]
    elif isinstance(node, ast.Call):
        name = _name(node)
        single = name in ("log", "sqrt")
        if name not in FUNCTIONS:
            problem = f"the call of '{name or 'something that is no name'}'"
        elif node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            problem = f"unusual arguments of {name}"
        elif not node.args or (single and len(node.args) != 1):
            problem = f"{name} with {len(node.args)} arguments"
        elif name == "volume" and not all(isinstance(a, ast.Constant) and type(a.value) is int for a in node.args):
            problem = "volume of something other than label values"
        children = list(node.args)
    elif isinstance(node, ast.Name):
        problem = f"the function {node.id} without arguments" if node.id in FUNCTIONS else ""
    else:
        problem = f"a construct that is not allowed ({type(getattr(node, 'op', node)).__name__})"
    if problem:
        known = f"numbers, columns, + - * /, parentheses, {', '.join(FUNCTIONS)}"
        raise InputError(f"expression '{expression}' has {problem}; allowed are {known}")
    for child in children:
        _allow(child, expression)


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _labels(call: ast.Call) -> list[int]:
    return [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, int)]
