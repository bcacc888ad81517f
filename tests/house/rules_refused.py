"""Refused constructs: what may not stand in this repository, and the few places where it may.

An exception is one line in `ALLOWED`, with its reason.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from tests.house.source import Source, Violation

# (path, construct) -> why it may stand there
ALLOWED = {
    ("src/winnow/base/rng.py", "manual_seed"): "the one place where a generator gets its seed",
    ("src/winnow/train/run.py", "manual_seed"): "transformers draws from the global generator, forked there",
}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK_MODULES = {
    "socket",
    "requests",
    "urllib.request",
    "http.client",
    "httpx",
    "aiohttp",
    "ftplib",
    "smtplib",
}
# Optional extras of pyproject.toml: absent on most machines, so they are imported where they are used.
EXTRAS = {
    "transformers",
    "matplotlib",
    "fastapi",
    "uvicorn",
    "prometheus_client",
    "qiskit",
    "lm_eval",
    "dask",
}
EXTRAS |= {"sklearn", "ctranslate2", "llama_cpp", "openai"}
GLOBAL_SEEDS = re.compile(
    r"^(torch|torch\.random|torch\.cuda|np\.random|numpy\.random|random)\.(manual_)?seed(_all)?$"
)
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b(?!\(#\d+\): \S)")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(work|root|tmp|home)/")
SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40,}|AKIA[0-9A-Z]{16})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def constructs(source: Source) -> Iterator[Violation]:
    """Walk the tree once; each node may break several rules."""
    for node in ast.walk(source.tree):
        for construct, rule in _everywhere(node):
            if (source.path, construct) not in ALLOWED:
                yield source.violation(node, rule)
        for construct, rule in _in_src(node, source) if source.in_src else ():
            if (source.path, construct) not in ALLOWED:
                yield source.violation(node, rule)


def _everywhere(node: ast.AST) -> Iterator[tuple[str, str]]:
    yield from _unsafe_loading(node)
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        yield "except", "a bare except hides interrupts: name the exception"
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        yield "__future__", "string annotations defeat run-time shape checks"
    if isinstance(node, ast.Attribute) and GLOBAL_SEEDS.match(ast.unparse(node)):
        yield "manual_seed", f"{ast.unparse(node)} seeds everybody: pass a torch.Generator"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if _is_mutable(default):
                yield "default", "a mutable default is shared by all calls: use None or a tuple"


def _unsafe_loading(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What runs code that came with data."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        for name in _modules(node):
            if name.split(".")[0] in UNSAFE_MODULES:
                yield "pickle", f"{name} runs what it loads: never"
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
        yield "torch.load", f"{ast.unparse(node)} is pickle: use safetensors"
    if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
        yield "trust_remote_code", "trust_remote_code runs strangers' code: never"
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is_false(node.value):
        yield "pickle", "allow_pickle runs what it loads: never"


def _in_src(node: ast.AST, source: Source) -> Iterator[tuple[str, str]]:
    called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if called in ("hasattr", "globals", "eval", "exec"):
        yield called, f"{called}() hides what is there: use types"
    if called == "print" and source.folder != "cli":
        yield "print", "print() outside cli: return it, or use base.progress"
    if isinstance(node, ast.Attribute):
        if node.attr == "manual_seed" and not GLOBAL_SEEDS.match(ast.unparse(node)):
            yield "manual_seed", "seed through winnow.base.rng.generator"
        if ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv", "os.environb"):
            yield "environ", "no environment variables: pass an option"
    if isinstance(node, ast.Import | ast.ImportFrom):
        for name in _modules(node):
            if name in ("os.environ", "os.getenv"):
                yield "environ", "no environment variables: pass an option"
            if source.folder != "server" and any((name + ".").startswith(m + ".") for m in NETWORK_MODULES):
                yield "network", f"{name} reaches the network: nothing is sent anywhere"


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names]


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _is_mutable(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("list", "dict", "set", "bytearray", "defaultdict")
    return isinstance(node, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def open_keywords(source: Source) -> Iterator[Violation]:
    """A public function names what it takes: no `**kwargs`."""
    for node, _ in source.public_functions():
        if node.args.kwarg is not None:
            yield source.violation(node, f"{node.name} takes **{node.args.kwarg.arg}: name the options")


def late_imports(source: Source) -> Iterator[Violation]:
    """Imports stand at the top, but for triton, optional extras, the command line and the root's verbs."""
    if source.folder in ("cli", ""):
        return
    inside = {node for function in source.function_nodes() for node in ast.walk(function)}
    for node in inside:
        if isinstance(node, ast.Import | ast.ImportFrom):
            tops = {name.split(".")[0] for name in _modules(node)}
            if not tops <= EXTRAS and not (source.name == "triton.py" and tops == {"triton"}):
                yield source.violation(node, f"import of {', '.join(sorted(tops))} inside a function")


def unfinished(source: Source) -> Iterator[Violation]:
    """An open end has an issue and a reason: `TODO(#12): why it waits`."""
    for line, text in _comments(source):
        if UNFINISHED.search(text):
            yield source.violation(line, "a bare TODO: write `TODO(#issue): why it waits`")


def _comments(source: Source) -> Iterator[tuple[int, str]]:
    if source.path.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    else:
        yield from enumerate(source.lines, start=1)


def machine_paths(source: Source) -> Iterator[Violation]:
    """No path of one person's machine, outside tests; no secret anywhere."""
    for number, line in enumerate(source.lines, start=1):
        if not source.in_tests and MACHINE_PATH.search(line):
            yield source.violation(number, "a path of one machine")
        if SECRET.search(line):
            yield source.violation(number, "this looks like a secret")
