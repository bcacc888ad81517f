"""Mutations: valid files with a few things changed, by bytes or by their structure."""

import copy
import json
from collections.abc import Iterator

from hypothesis import strategies as st

Path = tuple[str | int, ...]
Edit = tuple[int, object]
DELETE = object()
ODD = (
    DELETE,
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    255,
    2**16,
    2**31,
    2**32 - 1,
    2**53,
    2**63,
    2**64,
    -(2**63),
    10**30,
    0.0,
    -0.0,
    0.5,
    1e-300,
    1e300,
    "",
    "a",
    "0",
    "-1",
    "\0",
    "\ud800",
    "../a",
    "/etc/passwd",
    "a.py",
    "é" * 40,
    "a" * 5000,
    "opt",
    "llama",
    "relu",
    "default",
    "yarn",
    "F32",
    "BF16",
    "I64",
    "F8_E4M3",
    "U8",
    "BPE",
    "Unigram",
    "WordPiece",
    "dense",
    "svd",
    "gate",
    "low-rank",
    "next-layer",
    "fp32",
    [],
    {},
    [[]],
    [0],
    [0, 0],
    [1, 2],
    [-1],
    [2**63],
    ["a"],
    [None],
    {"a": 1},
    {"type": "BPE"},
    {"type": "Strip"},
)


def nodes(value: object, path: Path = ()) -> Iterator[Path]:
    """The place of every value of a JSON object."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from nodes(inner, (*path, key))
    if isinstance(value, list):
        for index, inner in enumerate(value[:12]):
            yield from nodes(inner, (*path, index))


def edited(value: object, places: list[Path], edits: list[Edit]) -> object:
    """Return a copy of a JSON value with other values, or none, at some of its places."""
    value = json.loads(json.dumps(value))
    for number, each in edits:
        odd = copy.deepcopy(each) if isinstance(each, (list, dict)) else each
        path = places[number % len(places)]
        if not path:
            value = value if odd is DELETE else odd
            continue
        holder = value
        try:
            for step in path[:-1]:
                holder = holder[step]  # type: ignore[index]
            if odd is DELETE:
                del holder[path[-1]]  # type: ignore[attr-defined]
            else:
                holder[path[-1]] = odd  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier edit took the place away
    return value


def json_values(valid: dict) -> st.SearchStrategy[object]:
    """Copies of `valid` with one to three odd values in it."""
    places = list(nodes(valid))[:4000]
    edit = st.tuples(st.integers(0, len(places) - 1), st.sampled_from(ODD))
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: edited(valid, places, edits))


def json_texts(valid: dict) -> st.SearchStrategy[bytes]:
    """JSON files: odd in what they hold, or in their bytes."""
    whole = json_values(valid).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    return st.one_of(whole, whole, byte_strings(json.dumps(valid).encode()))


def byte_strings(valid: bytes, *, first: int = 0, last: int | None = None) -> st.SearchStrategy[bytes]:
    """Copies of `valid` with a few bytes changed, cut out, doubled or cut off between `first` and `last`."""
    end = len(valid) if last is None else last
    place = st.integers(first, max(first, end - 1))
    changed = st.tuples(st.just("change"), place, st.binary(min_size=1, max_size=8))
    moved = st.tuples(st.sampled_from(("cut", "double")), place, st.integers(1, 40))
    short = st.tuples(st.just("short"), place, st.just(0))
    edits = st.lists(st.one_of(changed, changed, moved, short), min_size=1, max_size=4)
    return edits.map(lambda found: _applied(valid, found))


def _applied(valid: bytes, edits: list) -> bytes:
    content = bytearray(valid)
    for kind, place, value in edits:
        if kind == "change":
            content[place : place + len(value)] = value
        elif kind == "cut":
            del content[place : place + value]
        elif kind == "double":
            content[place:place] = content[place : place + value]
        else:
            del content[place:]
    return bytes(content)
