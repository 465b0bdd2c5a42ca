"""The code's structure, checked: imports, repetition, the tree of docs/tree.md, the tests' names."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("minlm/**/*.py"), *ROOT.glob("minclip/**/*.py"), *ROOT.glob("*.py")])
# What minclip may take from minlm: the Transformer's parts and the tools that know nothing of language.
OPEN_TO_MINCLIP = (
    "masks",
    "transformer",
    "embeddings",
    "merges",
    "tokenizer",
    "plots",
    "pretrained",
    "training",
)
ALLOWED = {
    "regex",  # tiktoken's own requirement, for the pattern that it splits text by
    "torch",
    "numpy",
    "PIL",
    "tiktoken",
    "matplotlib",
    "tqdm",
    "safetensors",
    "pyarrow",
    "minlm",
    "minclip",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_one_way(path):
    package = name(path).split("/")[0]
    for module in imports(path):
        top, *rest = module.split(".")
        assert top in ALLOWED or top in sys.stdlib_module_names, f"imports {module}"
        if package == "minlm":
            assert top != "minclip", f"minlm imports {module}"
        if package == "minclip" and top == "minlm":
            assert rest[0] in OPEN_TO_MINCLIP, f"minclip imports {module}"
        if name(path).startswith("minlm/training/"):
            assert top != "minlm" or rest[0] == "training", f"minlm/training imports {module}"


def test_what_is_imported_is_installed():
    """Every package is in requirements.txt, but for pyarrow, which is optional."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {re.match(r"\w+", line)[0] for line in lines}
    packages = {module.split(".")[0] for path in SOURCES for module in imports(path)} & ALLOWED
    renamed = {"PIL": "pillow"}
    assert {renamed.get(package, package) for package in packages} - listed == {"minlm", "minclip", "pyarrow"}


def telling_lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) without blanks, comments, imports, docstrings' quotes and lone brackets."""
    text = path.read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {number for node in imports for number in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(text.splitlines(), start=1)
    stripped = [(number, " ".join(line.split())) for number, line in lines if number not in imported]
    idle = re.compile(r"(#.*|[\])}({\[,:\"']*|else:|try:|return|pass)$")
    return [(number, line) for number, line in stripped if line and not idle.match(line)]


def test_no_six_lines_stand_twice():
    seen: dict[tuple[str, ...], str] = {}
    for path in SOURCES:
        lines = telling_lines(path)
        for start in range(len(lines) - 5):
            window = tuple(line for _, line in lines[start : start + 6])
            here = f"{name(path)}:{lines[start][0]}"
            assert window not in seen, f"{here} repeats {seen[window]}"
            seen[window] = here


# Modules whose tests are in the file of the module that they are a part of.
PART_OF = {
    "minlm/transformer_config": "minlm/test_transformer",
    "minlm/screenplay/rows": "minlm/screenplay/test_layout",
    "minlm/pretrained/options": "minlm/pretrained/test_gpt2",
    "minclip/pretrained/layout": "minclip/pretrained/test_load",
}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__init__.py"], ids=name)
def test_the_tests_mirror_the_tree(path):
    module = name(path).removesuffix(".py")
    folder, _, leaf = module.rpartition("/")
    test = PART_OF.get(module, f"{folder}/test_{leaf.strip('_')}".removeprefix("/"))
    assert list((ROOT / "tests").glob(f"{test}*.py")), f"no tests/{test}*.py"


def told_tree() -> set[str]:
    """Paths of docs/tree.md: a code block whose lines begin with a path, indented by folder."""
    text = (ROOT / "docs" / "tree.md").read_text(encoding="utf-8")
    block = re.search(r"```\n(.*?)```", text, re.DOTALL).group(1)
    paths, folders = set(), []
    for line in block.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        for entry in re.split(r"\s{2,}", line.strip())[0].split():
            folders = folders[:depth]
            paths.add("/".join([*folders, entry.rstrip("/")]))
        if entry.endswith("/"):
            folders.append(entry.rstrip("/"))
    return paths


def test_the_told_tree_is_the_real_one():
    real = {name(path) for path in SOURCES if path.name != "__init__.py"}
    real |= {name(path) for path in [*ROOT.glob("docs/*.*"), *ROOT.glob("benchmarks/*.py")]}
    real |= {
        name(parent)
        for path in SOURCES
        for parent in path.parents
        if parent != ROOT and ROOT in parent.parents
    }
    real |= {
        "requirements.txt",
        "README.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "LICENSE",
        "pyproject.toml",
        ".ci",
        ".ci/run",
        ".github",
        ".github/workflows",
        ".github/workflows/ci.yml",
        "tests",
        "docs",
        "benchmarks",
    }
    told = {path for path in told_tree() if not path.startswith("tests/")}
    assert told == real
    for path in told_tree():
        assert (ROOT / path).exists(), f"docs/tree.md names {path}"


CODE = sorted([*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/*.py")])
# Words that the project has replaced, and what is written now.
REPLACED = {
    r"likeness": "similarity or cosine",
    r"may look at": "may attend to",
    r"lr_floor": "min_lr_ratio",
    r"(?<!grad_)clip_norm": "grad_clip_norm",
    r"figures, pictures": "metrics, plots",
}


@pytest.mark.parametrize("path", CODE, ids=name)
def test_docstrings_begin_with_a_verb_or_a_noun(path):
    """A question word at the start makes the reader guess what the function does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = (ast.get_docstring(node) or "").split(" ")[0]
            told = f"{name(path)}: the docstring of {getattr(node, 'name', 'the module')} begins with {first}"
            assert first not in ("What", "Whether", "Where", "When", "How", "Which", "Why", "If"), told


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "parity").glob("*.py")), ids=name)
def test_parity_imports_names_that_exist(path):
    """The default run does not import these modules, because their third-party packages may be absent."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("minlm", "minclip"):
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{name(path)}: {node.module} has no {', '.join(missing)}"


@pytest.mark.parametrize("path", CODE, ids=name)
def test_replaced_words_do_not_come_back(path):
    if path in (
        Path(__file__),
        ROOT / "minlm/training/config.py",
        ROOT / "tests/minlm/training/test_config.py",
    ):
        return  # they name the old options in their messages
    text = path.read_text(encoding="utf-8")
    for old, new in REPLACED.items():
        assert not re.search(rf"\b{old}\b", text), f"{name(path)} has {old!r}: write {new}"
