"""Floors: labels, direction, reading order, over all of src and on planted faults."""

import pytest

from tests.house.rules_floors import complete, floors, label, listed, reading_order
from tests.house.source import ROOT, Source, assert_caught, assert_none, assert_passes, python

SOURCES = python("src/winnow")
PACKAGES = {s.module: s for s in SOURCES if s.name == "__init__.py"}
READ_BY_HUMANS = (".py", ".cpp", ".hpp")


def files_of(init: Source) -> list[str]:
    """What a docstring has to list: files a person reads, and folders that hold some."""
    folder = (ROOT / init.path).parent
    names = [p.name for p in folder.iterdir() if p.suffix in READ_BY_HUMANS and p.name != "__init__.py"]
    for below in folder.iterdir():
        if below.is_dir() and any(p.suffix in READ_BY_HUMANS for p in below.rglob("*.*")):
            names.append(f"{below.name}/")
    return names


def test_every_label_names_the_floor_the_file_stands_on():
    assert_none(v for s in SOURCES for v in label(s))


def test_every_package_has_a_floor_and_an_init():
    folders = {s.module[: len(s.module) - (s.name != "__init__.py")] for s in SOURCES}
    assert folders <= set(PACKAGES), f"no __init__.py in {sorted(folders - set(PACKAGES))}"


def test_imports_go_downward_by_public_names():
    assert_none(v for s in SOURCES for v in floors(s))


def test_every_docstring_lists_the_files_of_its_package():
    inits = [init for module, init in PACKAGES.items() if len(module) > 1]
    assert_none(v for init in inits for v in complete(init, files_of(init)))


def test_reading_order_is_import_order():
    assert_none(v for s in SOURCES for v in reading_order(s, PACKAGES))


LABELS = {
    "no docstring": "x = 1\n",
    "no label": '"""Sketches: random maps."""\n',
    "another floor": '"""Sketches: random maps.   (floor 3 · linalg)"""\n',
    "another package": '"""Sketches: random maps.   (floor 2 · search)"""\n',
    "one space": '"""Sketches: random maps. (floor 2 · linalg)"""\n',
}


@pytest.mark.parametrize("text", LABELS.values(), ids=LABELS)
def test_a_wrong_label_is_caught(text):
    assert_caught(label, "src/winnow/linalg/sketch.py", text, says="(floor 2 · linalg)")


def test_the_label_of_style_md_passes():
    text = '"""Sketches: random maps that keep norms.   (floor 2 · linalg)"""\n'
    assert_passes(label, "src/winnow/linalg/sketch.py", text)


UPWARD = {
    "upward": ("linalg/a.py", "from winnow.engine import load", "only downward"),
    "sibling": ("engine/a.py", "from winnow.train.recipe import Recipe", "only downward"),
    "attribute form": ("linalg/a.py", "import winnow.search", "only downward"),
    "package name": ("linalg/a.py", "from winnow import search", "only downward"),
    "relative": ("linalg/a.py", "from ..search import heavy_pairs", "only downward"),
    "in a function": ("linalg/a.py", "def f(): import winnow.cli", "only downward"),
    "studies": ("server/a.py", "from winnow.studies import run", "cli only"),
    "unknown": ("linalg/a.py", "from winnow.utils import x", "has no floor"),
    "private module": ("linalg/a.py", "from winnow.kernels._native import Cpu", "private"),
    "private name": ("linalg/a.py", "from winnow.base.files import _draft", "private"),
}


@pytest.mark.parametrize(("path", "text", "says"), UPWARD.values(), ids=UPWARD)
def test_an_import_off_its_floor_is_caught(path, text, says):
    assert_caught(floors, f"src/winnow/{path}", text, says=says)


def test_downward_and_own_imports_pass():
    text = "import torch\nfrom winnow.base.errors import UsageError\nfrom winnow.linalg.a import _near\n"
    assert_passes(floors, "src/winnow/linalg/b.py", text)


DOCSTRING = (
    '"""Linalg: x.   (floor 2 · linalg)\n\n    a.py   first\n    deep/ more/   then\n    b.py   last\n"""\n'
)
DEEP = '"""Deep: x.   (floor 2 · linalg)\n\n    one.py   first\n    two.py   then\n"""\n'
PLANTED = {
    ("winnow", "linalg"): Source("src/winnow/linalg/__init__.py", DOCSTRING),
    ("winnow", "linalg", "deep"): Source("src/winnow/linalg/deep/__init__.py", DEEP),
}


def order(source: Source):
    return reading_order(source, PLANTED)


OUT_OF_ORDER = {
    "below": ("a.py", "from winnow.linalg.b import x"),
    "submodule by name": ("a.py", "from winnow.linalg import b"),
    "folder below": ("a.py", "from winnow.linalg.deep.one import x"),
    "folder imports below": ("deep/one.py", "from winnow.linalg.b import x"),
    "inside the folder": ("deep/one.py", "from winnow.linalg.deep.two import x"),
    "relative": ("deep/one.py", "from .two import x"),
}


@pytest.mark.parametrize(("path", "text"), OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
def test_an_import_from_below_is_caught(path, text):
    assert_caught(order, f"src/winnow/linalg/{path}", text, says="is not listed above")


def test_importing_the_own_package_is_caught():
    assert_caught(order, "src/winnow/linalg/a.py", "from winnow.linalg import verb", says="a cycle")


def test_imports_from_above_pass():
    text = (
        "from winnow.linalg.a import x\nfrom winnow.linalg import deep\nfrom winnow.linalg.deep.two import z"
    )
    assert_passes(order, "src/winnow/linalg/b.py", text)
    assert_passes(order, "src/winnow/linalg/__init__.py", "from winnow.linalg.b import x\n")
    assert_passes(order, "src/winnow/linalg/deep/two.py", "from winnow.linalg.deep.one import x\n")


def test_the_docstring_list_is_read_in_order():
    assert listed(PLANTED["winnow", "linalg"]) == ["a.py", "deep/", "more/", "b.py"]


def test_a_list_that_ruff_moved_to_the_margin_is_read_and_prose_is_not():
    text = '"""X: y.   (floor 2 · linalg)\n\na.py   one\nb*.hpp c.cpp   two\nd.py says more than a.py\n"""\n'
    assert listed(Source("src/winnow/linalg/__init__.py", text)) == ["a.py", "b*.hpp", "c.cpp"]


def test_missing_and_invented_files_are_caught():
    found = [v.rule for v in complete(PLANTED["winnow", "linalg"], ["a.py", "b.py", "c.py", "deep/"])]
    assert found == ["c.py is not listed in the package's docstring", "more/ is listed but does not exist"]


def test_a_pattern_lists_several_files_and_a_file_listed_twice_is_caught():
    init = Source(
        "src/winnow/linalg/__init__.py", '"""X.\n\na.py   one\nx_*.cpp   two\nx_1.cpp   three\n"""\n'
    )
    found = [v.rule for v in complete(init, ["a.py", "x_1.cpp", "x_2.cpp"])]
    assert found == ["x_1.cpp is listed twice"]
