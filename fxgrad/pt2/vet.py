"""Check the program in a .pt2 file word by word: everything that is not listed here is refused.

torch's reader turns some of the file's text into code: names become variables of generated Python, sympy evaluates
expressions, targets are looked up as attributes, structures import the types that they name. So every string must be of
a known sort, and is checked accordingly.

Source: torch/_export/serde/schema.py, the format; torch/_export/serde/serialize.py, what its reader does with it.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from fxgrad.errors import ArtefactError

T = TypeVar("T")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SYMBOLIC = _words(
    "_operator.add _operator.and_ _operator.eq _operator.floordiv _operator.ge _operator.getitem _operator.gt "
    "_operator.le _operator.lt _operator.mod _operator.mul _operator.ne _operator.neg _operator.or_ _operator.pos "
    "_operator.sub _operator.truediv math.ceil math.floor math.trunc torch._sym_sqrt torch.sym_float torch.sym_int "
    "torch.sym_ite torch.sym_max torch.sym_min torch.sym_not torch.sym_sum"
)
"""Functions by which programs compute sizes."""
CONTROL_FLOW = _words("cond while_loop map_impl scan associative_scan wrap_with_set_grad_enabled")
"""Higher-order ops that PyTorch writes for a model's own control flow."""
INTERNAL = _words(
    "c10d _c10d_functional _c10d_functional_autograd c10d_functional debugprims fsdp higher_order inductor mempool mkl "
    "mkldnn mkldnn_prepacked onednn onnx_symbolic prim profiler rngprims rpc _dtensor _native _test static_runtime "
    "streams symm_mem"
)
"""Namespaces of ops that act on more than their operands: processes, devices, memory."""
TEXTS = _words(
    "UPLO activation approximate assert_msg driver equation indexing interpolation mode norm ord p pad_mode padding "
    "padding_side quant_type reduce rounding_mode side"
)
"""Operands that may be text. File names are not among them."""
_PLAIN_TYPE = re.compile(r"((Optional|List)\[)*(Tensor|int|float|bool|number|Device|Generator|complex)\]*")
_FUNCTIONS = _words(
    "Symbol Integer Float Rational Add Mul Pow Max Min Eq Ne Equality Unequality StrictLessThan StrictGreaterThan "
    "LessThan GreaterThan And Or Not FloorDiv ModularIndexing PythonMod Mod CleanDiv CeilDiv IntTrueDiv FloatTrueDiv "
    "CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt ToFloat Identity Where Piecewise ExprCondPair floor "
    "ceiling"
)
_NODES = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.USub, ast.Tuple)
_LONGEST = 20_000


def expect(kind: type[T], value: Any, where: str) -> T:
    """Return the value if it has this type.

    Raises:
        ArtefactError: it has another type.

    Example:
        >>> expect(int, 3, "size")
        3
    """
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ArtefactError(f"{where} should be {kind.__name__}, not {str(value)[:60]!r}.")


def is_name(text: str) -> bool:
    """Whether the text can only be a variable's name in generated code."""
    return bool(re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII)) and not keyword.iskeyword(text) and text not in _TAKEN


_TAKEN = frozenset({"torch", "self", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", "builtins", "math"})


def is_path(text: str) -> bool:
    """Whether the text can be a module's or tensor's path: printable, and unable to end a string in generated code."""
    return text.isprintable() and not set(text) & set("'\"\\`{}()") and len(text) < _LONGEST


def is_text(text: str) -> bool:
    """True: text that is only printed or passed to an op may be anything."""
    return len(text) < 50 * _LONGEST


def is_expression(text: str) -> bool:
    """Whether the text is a size in sympy's `srepr` form, of symbols and numbers that cannot grow without bounds.

    Example:
        >>> is_expression("Mul(Integer(2), Symbol('s0', integer=True))"), is_expression("__import__('os')")
        (True, False)
    """
    if len(text) > _LONGEST:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    calls = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return all(_sound(node, calls) for node in ast.walk(tree))


def _sound(node: ast.AST, calls: set[int]) -> bool:
    """Whether one syntax node of an expression is among those that srepr writes for sizes."""
    if isinstance(node, ast.Name):
        return node.id in (_FUNCTIONS if id(node) in calls else {"true", "false", "oo", "int_oo"})
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        first = node.args[0] if node.args else None
        texts = [a for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if name == "Symbol":
            return len(node.args) == 1 and texts == [first] and is_name(str(texts[0].value))
        if name == "Float":
            return texts == [first] and bool(re.fullmatch(r"[-+\d.e]{1,80}", str(texts[0].value)))
        if name == "Pow":  # powers of numbers can take forever to compute
            exponent = ast.unparse(node.args[1]) if len(node.args) == 2 else ""
            inner = any(isinstance(n, ast.Name) and n.id == "Pow" for n in ast.walk(node.args[0]))
            return bool(re.fullmatch(r"(Integer|Rational)\(-?\d(, \d)?\)", exponent)) and not inner
        return not texts
    if isinstance(node, ast.keyword):
        plain = isinstance(node.value, ast.Constant) and isinstance(node.value.value, (bool, int))
        return node.arg is not None and node.arg.isidentifier() and plain
    if isinstance(node, ast.Constant):
        small = isinstance(node.value, int) and abs(node.value) < 2**64
        return small or isinstance(node.value, (str, float)) or node.value is None
    return isinstance(node, _NODES)


def is_structure(text: str) -> bool:
    """Whether the text is a tree of containers as pytree writes it, of types that this process knows.

    Raises:
        ArtefactError: it is such a tree, but with a type that is not registered.

    Example:
        >>> is_structure(pytree.treespec_dumps(pytree.tree_structure({"a": (1, 2)})))
        True
    """
    try:
        protocol, tree = json.loads(text)
    except ValueError:
        return False
    return protocol == 1 and _is_tree(tree)


def _is_tree(tree: Any) -> bool:
    if not isinstance(tree, dict) or set(tree) != {"type", "context", "children_spec"}:
        return False
    kind, context, children = tree["type"], tree["context"], tree["children_spec"]
    if not isinstance(children, list) or not all(_is_tree(child) for child in children):
        return False
    if kind is None:
        return context is None and not children
    if kind not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
        package = str(kind).rpartition(".")[0]
        raise ArtefactError(
            f"inputs or outputs are of the type {kind}, which nothing in this process has registered. Import the "
            f"module that defines it ({package}) before loading."
        )
    if kind == "collections.defaultdict":
        plain = isinstance(context, dict) and context.get("default_factory_module") == "builtins"
        return plain and context.get("default_factory_name") in ("list", "dict", "int", "float", "set", "tuple")
    return "__enum__" not in json.dumps(context)  # an enum's type would be imported


def is_target(text: str) -> bool:
    """Whether the text names an op that is registered in this process and acts on its operands only.

    Raises:
        ArtefactError: it looks like an op's name, but there is no such op.

    Example:
        >>> [is_target(f"torch.ops.aten.{op}") for op in ("add.Tensor", "from_file.default")] + [is_target("os.system")]
        [True, False, False]
    """
    if text in SYMBOLIC:
        return True
    if text.startswith("torch.ops.higher_order."):
        return text.rpartition(".")[2] in CONTROL_FLOW
    match = re.fullmatch(r"torch\.ops\.([A-Za-z]\w*)\.(\w+)\.(\w+)", text, re.ASCII)
    if not match or match[1] in INTERNAL:
        return False
    op = getattr(getattr(getattr(torch.ops, match[1]), match[2], None), match[3], None)
    if not isinstance(op, torch._ops.OpOverload):
        raise ArtefactError(
            f"the program calls {text}, which neither PyTorch {torch.__version__} nor an imported library has. Import "
            "the library that defines it before loading."
        )
    return all(_is_plain(argument) for argument in [*op._schema.arguments, *op._schema.returns])


def _is_plain(argument: Any) -> bool:
    kind = str(argument.type)
    return argument.name in TEXTS if kind in ("str", "Optional[str]") else bool(_PLAIN_TYPE.fullmatch(kind))


_FLOATS = ("Infinity", "-Infinity", "NaN").__contains__
_SORTS: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(("name", "as_name"), lambda text: not text or is_name(text)),
    **dict.fromkeys(("target",), is_target),
    **dict.fromkeys(("expr_str",), is_expression),
    **dict.fromkeys(("in_spec", "out_spec"), is_structure),
    **dict.fromkeys(("forward_arg_names",), is_name),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "user_input_name", "fqn"), is_path),
    **dict.fromkeys(("as_string", "as_strings", "stack_trace", "nn_module_stack", "torch_version"), is_text),
    **dict.fromkeys(("as_float", "as_floats", "as_float_lists", "real", "imag", "min_val", "max_val"), _FLOATS),
    "type": lambda text: bool(re.fullmatch(r"[a-z]{1,20}", text)),
    "verifiers": ("ATEN", "TRAINING", "").__contains__,
}
"""Field -> the test for its text."""
_NAMED = _words("tensor_values sym_int_values sym_bool_values sym_float_values range_constraints opset_version")
"""Tables whose keys are names."""
_REFUSED = _words("as_custom_obj custom_obj token as_operator as_string_to_argument")
_DROPPED = {"guards_code": list, "treespec_namedtuple_fields": dict, "custom_obj_values": dict}
_KEPT = ("stack_trace", "nn_module_stack")


def vetted(program: Any) -> dict[str, Any]:
    """The checked program of a .pt2 file, reduced to what fxgrad uses.

    Args:
        program: models/model.json of the archive, parsed.

    Returns:
        The program without guards (torch would run them as code; fxgrad checks inputs itself), and with no metadata of
        nodes except where they come from.

    Raises:
        ArtefactError: names the first item that is not as torch.export.save writes it, or that could run code.

    Example:
        >>> vetted({"graph_module": {"graph": {"nodes": [{"target": "os.system"}]}}})
        Traceback (most recent call last):
        ...
        fxgrad.errors.ArtefactError: the program has 'os.system' for a target, which fxgrad does not run. ...
    """
    return expect(dict, _vetted(expect(dict, program, "the program"), "program"), "the program")


def _vetted(value: Any, key: str) -> Any:
    if isinstance(value, str):
        if key not in _SORTS or not _SORTS[key](value):
            raise ArtefactError(
                f"the program has {value[:80]!r} for a {key or 'name'}, which fxgrad does not run. The file is damaged "
                "or hostile, or holds an op that acts on more than its operands."
            )
        return value
    if isinstance(value, list):
        return [_vetted(item, key) for item in value]
    if not isinstance(value, dict):
        return value
    if key in _NAMED and not all(map(is_name, value)):
        raise ArtefactError(f"the program has {next(n for n in value if not is_name(n))[:80]!r} for a name in {key}.")
    if key == "metadata":
        value = {name: value[name] for name in _KEPT if name in value}
    if "arg" in value and "kind" in value:  # an operand, named as in the op's schema, such as `self`
        named = expect(str, value.get("name"), "an operand's name")
        if not re.fullmatch(r"\w*", named, re.ASCII):
            raise ArtefactError(f"the program has an operand {named[:80]!r}.")
        return {"name": named, "kind": value["kind"], "arg": _vetted(value["arg"], "arg")}
    for refused in _REFUSED & set(value):
        raise ArtefactError(f"the program has a {refused} ({str(value[refused])[:80]}), which only code could make.")
    return {k: _DROPPED[k]() if k in _DROPPED else _vetted(v, "" if key in _NAMED else k) for k, v in value.items()}
