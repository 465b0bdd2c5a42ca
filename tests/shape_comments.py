"""Checks of shape comments: `x = ...  # (B, T, D)` is compared with the tensor that the line makes.

While a `ShapeComments` is active, the functions of its modules run with one call more on each line that ends in
a shape comment: it hands the assigned, returned or written value to `compare`. A letter (or name) has one value
within a call of a function. It gets that value from `known`, from a parameter's shape in the function's docstring
("x (B, T, D)"), or from the first comment that has it.

    (B, 3, D/2)  (W B, E)  (B, 1 + T)      products, halves and sums; a prime makes another letter: T'
    (..., T)                               any dimensions before T, the same ones in the whole call
    (B, T or S)                            either
    (B, E) each                            every tensor of the line
    (B, E), (B)                            one after the other
    (B, W), W = 1 at first                 what follows a comma or colon and is no shape is prose
"""

import ast
import inspect
import io
import re
import tokenize
from fractions import Fraction
from functools import cache
from itertools import combinations
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
DIM = r"\w[\w' +*/-]*"
SHAPE = rf"\((?:\.\.\.|{DIM})(?:, ?{DIM})*,?\)"
COMMENT = re.compile(rf"# ({SHAPE}(?: each)?(?:, {SHAPE}(?: each)?)*)(?=$|[,:;])")
NAME = re.compile(r"[A-Za-z]\w*'*")
Dims = list[str]
Letters = dict[str, Fraction | tuple[int, ...]]


def dimensions(shape: str) -> Dims:
    """The dimensions of "(B, T)" as ["B", "T"]."""
    return [part.strip() for part in shape.strip("()").split(",") if part.strip()]


@cache
def choices(dim: str) -> list[tuple[set[str], CodeType]]:
    """The letters of "T or 3 D", and what computes it from them: one pair for each side of the "or"."""
    found = []
    for choice in dim.split(" or "):
        product = re.sub(r"(?<=[\w']) +(?=[A-Za-z])", " * ", choice)
        formula = NAME.sub(lambda name: f"letters[{name[0]!r}]", product)
        found.append((set(NAME.findall(choice)), compile(formula, dim, "eval")))
    return found


def fits(dim: str, size: int, letters: Letters) -> bool:
    """Tell if a dimension has this size; its one unknown letter, if any, gets the value that makes it so."""
    unknown = [(names - letters.keys(), formula) for names, formula in choices(dim)]
    if any(not names and eval(formula, {"letters": letters}) == size for names, formula in unknown):
        return True
    for names, formula in unknown:
        if len(names) == 1:  # the dimension is linear in it
            (name,) = names
            at_0, at_1 = (eval(formula, {"letters": letters | {name: Fraction(value)}}) for value in (0, 1))
            value = (size - at_0) / (at_1 - at_0)
            if value.denominator == 1 and value >= 0:
                letters[name] = value
                return True
    return False


def matches(dims: Dims, shape: tuple[int, ...], letters: Letters) -> bool:
    """Tell if a tensor has the dimensions that a comment names; if so, unknown letters get their values."""
    trial = dict(letters)
    if dims[:1] == ["..."] and len(shape) >= len(dims) - 1:
        leading = shape[: len(shape) - len(dims) + 1]
        if trial.setdefault("...", leading) != leading:
            return False
        dims, shape = dims[1:], shape[len(leading) :]
    if len(dims) != len(shape) or not all(map(fits, dims, shape, [trial] * len(dims))):
        return False
    letters.update(trial)
    return True


def matching(all_dims: list[Dims], shapes: list[tuple[int, ...]], letters: Letters) -> bool:
    """Tell if tensors have, in their order, the dimensions that a comment gives them."""
    return len(all_dims) == len(shapes) and all(map(matches, all_dims, shapes, [letters] * len(shapes)))


def tensors(value) -> list[Tensor]:
    """The tensors of a value: itself, or those inside of its tuples and lists, in order."""
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def dimensions_per_tensor(text: str, count: int) -> list[Dims]:
    """The dimensions that a comment gives each of so many tensors."""
    found = re.findall(rf"({SHAPE})( each)?", text)
    if len(found) == 1 and found[0][1]:
        return [dimensions(found[0][0])] * count
    spare = count - len(found)  # tensors that "each" of the first shape covers beside its own
    return [dimensions(shape) for shape, each in found for _ in range(1 + (spare if each else 0))]


class Parameters:
    """The shapes that a docstring gives a function's parameters: "images, texts (B, E)", "x (T) or (B, T)"."""

    def __init__(self, function: ast.FunctionDef):
        text = " ".join((ast.get_docstring(function) or "").split())
        names = {arg.arg for arg in (*function.args.args, *function.args.kwonlyargs)}
        self.shapes: dict[str, list[Dims]] = {}
        for some, shapes in re.findall(rf"((?:\w+(?:, | and ))*\w+) ({SHAPE}(?: or {SHAPE})*)", text):
            for name in re.split(", | and ", some):
                if name in names:
                    self.shapes.setdefault(name, [dimensions(shape) for shape in re.findall(SHAPE, shapes)])


class ShapeComments:
    """The shape comments of modules; inside of `with`, each is compared with what its line makes.

    known: letters that have one value in every call. verified: places, (path, line), of comments that were
    compared. swaps: comments with two dimensions swapped, (path, line, comment), and those of them that some
    tensor has refused: one that every tensor fits means that the comment is not checked at all.
    """

    def __init__(self, *modules: ModuleType):
        self.modules = modules
        self.known: dict[str, int] = {}
        self.comments: dict[tuple[str, int], str] = {}
        self.parameters: dict[tuple[str, str], Parameters] = {}
        self.verified: set[tuple[str, int]] = set()
        self.swaps: set[tuple[str, int, str]] = set()
        self.refused: set[tuple[str, int, str]] = set()
        self.codes = [self.rewritten(module) for module in modules]

    def rewritten(self, module: ModuleType) -> dict[str, CodeType]:
        """The code of a module's functions, with a comparison at each comment: {qualified name: code}."""
        file, here = Path(module.__file__), {}
        text = file.read_text(encoding="utf-8")
        path = (file.relative_to(ROOT) if file.is_relative_to(ROOT) else file).as_posix()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            trailing = token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
            if trailing and token.string.startswith("# ("):
                found = COMMENT.match(token.string)
                assert found, f"{path}:{token.start[0]}: {token.string!r} opens like a shape and is none"
                here[token.start[0]] = found[1]
        self.comments |= {(path, line): comment for line, comment in here.items()}
        tree = ast.parse(text)
        rewriter = Rewriter(path, here, tree)
        tree = ast.fix_missing_locations(rewriter.visit(tree))
        self.parameters |= rewriter.parameters
        return dict(functions_of(compile(tree, path, "exec")))

    def __enter__(self) -> "ShapeComments":
        self.original = []
        for module, codes in zip(self.modules, self.codes, strict=True):
            vars(module).update(__compare__=self.compare, __begin__=self.begin)
            for function in functions_in(module):
                if function.__qualname__ in codes:
                    self.original.append((function, function.__code__))
                    function.__code__ = codes[function.__qualname__]
        return self

    def __exit__(self, *exception) -> None:
        for function, code in self.original:
            function.__code__ = code
        for module in self.modules:
            del module.__compare__, module.__begin__

    def begin(self, path: str, function: str, values: dict) -> Letters:
        """The letters that a call begins with: those known, and those of its arguments."""
        letters = {name: Fraction(value) for name, value in self.known.items()}
        for name, shapes in self.parameters[path, function].shapes.items():
            if isinstance(values.get(name), Tensor):
                shape = tuple(values[name].shape)
                assert any(matches(dims, shape, letters) for dims in shapes), (
                    f"{path}: {function} is given {name} {shape}, not {shapes}: {values_of(letters)}"
                )
        return letters

    def compare(self, letters: Letters, path: str, line: int, targets: tuple[str, ...], value):
        """The value of a line, after its comparison with the line's comment. targets: what it is unpacked into."""
        if targets:
            value = tuple(value)  # a generator runs once, and a tensor is unpacked along its first dimension
            named = [part for name, part in zip(targets, value, strict=True) if name != "_"]
        else:
            named = value
        shapes = [tuple(tensor.shape) for tensor in tensors(named)]
        if named is None:
            return value
        comment, before = self.comments[path, line], dict(letters)
        all_dims = dimensions_per_tensor(comment, len(shapes))
        fit = len(shapes) > 0 and matching(all_dims, shapes, letters)
        actual = ", ".join(map(str, shapes)) or f"no tensor but {type(value).__name__}"
        assert fit, f"{path}:{line}: the comment says {comment}, the line makes {actual}: {values_of(before)}"
        self.verified.add((path, line))
        for k, dims in enumerate(all_dims):
            for i, j in combinations(range("..." in dims, len(dims)), 2):
                if dims[i] != dims[j]:
                    swapped = [dims[{i: j, j: i}.get(n, n)] for n in range(len(dims))]
                    place = path, line, f"({', '.join(swapped)})"
                    self.swaps.add(place)
                    trial = [*all_dims[:k], swapped, *all_dims[k + 1 :]]
                    if place not in self.refused and not matching(trial, shapes, dict(before)):
                        self.refused.add(place)
        return value

    def summary(self) -> str:
        return f"{len(self.verified)} of {len(self.comments)} shape comments compared with the tensors of their lines"

    def unreached(self) -> list[str]:
        missing = sorted(self.comments.keys() - self.verified)
        return [f"{path}:{line}: {self.comments[path, line]}" for path, line in missing]


def values_of(letters: Letters) -> str:
    return ", ".join(f"{name} = {value}" for name, value in letters.items()) or "no letter is known"


def functions_of(code: CodeType):
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner
            yield from functions_of(inner)


def functions_in(module: ModuleType):
    """The functions and methods that a module defines, without their decorators."""
    for owner in (module, *(part for part in vars(module).values() if isinstance(part, type))):
        for part in vars(owner).values():
            part = part.__func__ if isinstance(part, staticmethod) else part
            function = inspect.unwrap(part) if isinstance(part, FunctionType) else getattr(part, "fget", None)
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield function


class Rewriter(ast.NodeTransformer):
    """Puts a call of __compare__ around what each commented line makes, and one of __begin__ into its function."""

    def __init__(self, path: str, comments: dict[int, str], tree: ast.Module):
        self.path, self.names = path, []
        self.parameters: dict[tuple[str, str], Parameters] = {}
        self.wanted: dict[ast.expr, tuple[int, tuple[str, ...]]] = {}
        statements, expressions = {}, {}
        for node in ast.walk(
            tree
        ):  # from the outside in: the first expression that ends on a line is the largest
            if isinstance(node, ast.Assign | ast.Return) and node.value is not None:
                statements.setdefault(node.end_lineno, node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.args:
                expressions[node.end_lineno] = node.value.args[
                    -1
                ]  # ranks.append(rank): the comment is the rank's
            elif isinstance(node, ast.expr):
                expressions.setdefault(node.end_lineno, node)
        for line in comments:
            if line in statements:
                target = getattr(statements[line], "targets", [None])[0]
                parts = target.elts if isinstance(target, ast.Tuple) else ()
                self.wanted[statements[line].value] = line, tuple(map(ast.unparse, parts))
            elif line in expressions:
                self.wanted[expressions[line]] = line, ()

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.names.append(node.name)
        here = ".".join(self.names)
        changed = self.generic_visit(node)
        if isinstance(node, ast.FunctionDef):
            self.parameters[self.path, here] = Parameters(node)
            begin = f"__letters__ = __begin__({self.path!r}, {here!r}, locals())"
            node.body.insert(ast.get_docstring(node) is not None, ast.parse(begin).body[0])
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.names.pop()
        if node in self.wanted:
            line, targets = self.wanted[node]
            call = f"__compare__(__letters__, {self.path!r}, {line}, {targets!r})"
            wrapped = ast.parse(call, mode="eval").body
            wrapped.args.append(changed)
            return wrapped
        return changed
