import json

import numpy as np
import pytest

from tests.cli.conftest import assert_one_line


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 4))
    b = a @ np.array([1.0, -2.0, 3.0, 0.5]) + 0.1 * rng.standard_normal(500)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    return tmp_path, a, b


@pytest.mark.parametrize("options", ["", "--eps 0.01 --method sketch", "--ridge 0", "--method gram --seed 3"])
def test_solves_and_tells_what_is_known(winnow, files, options):
    folder, a, b = files
    ran = winnow("solve", "lstsq", str(folder / "a.npy"), str(folder / "b.npy"), "--json", *options.split())
    told = json.loads(ran.out)
    assert ran.code == 0
    best = np.linalg.lstsq(a, b, rcond=None)[0]
    loss = np.sum(np.square(a @ np.array(told["x"]) - b)) / np.sum(np.square(a @ best - b)) - 1
    assert loss <= told["eps_certified"] + 1e-12
    assert (told["rank"], told["rows"], told["columns"]) == (4, 500, 4)
    assert told["is_converged"]


def test_shows_a_solution_to_people_and_writes_it_whole(winnow, files):
    folder, a, b = files
    place = folder / "x.npy"
    ran = winnow(
        "solve", "lstsq", str(folder / "a.npy"), str(folder / "b.npy"), "--out", str(place), "--ridge", "2"
    )
    assert ran.code == 0
    assert "500 x 4 by lapack" in ran.out
    assert str(place) in ran.out
    expected = np.linalg.solve(a.T @ a + 2 * np.eye(4), a.T @ b)
    np.testing.assert_allclose(np.load(place, allow_pickle=False), expected, rtol=1e-10)


def test_what_was_not_reached_is_said_beside_the_result(winnow, files):
    folder, _, _ = files
    np.save(folder / "twin.npy", np.ones((500, 2)))
    ran = winnow("solve", "lstsq", str(folder / "twin.npy"), str(folder / "b.npy"))
    assert ran.code == 0
    assert "The rank is 1 of 2" in ran.err
    assert winnow("solve", "lstsq", str(folder / "twin.npy"), str(folder / "b.npy"), "--quiet").err == ""


def test_broken_files_end_in_one_line(winnow, files):
    folder, a, _ = files
    (folder / "text.npy").write_text("not an array")
    (folder / "empty.npy").write_bytes(b"")
    np.save(folder / "short.npy", np.ones(3))
    np.save(folder / "nan.npy", np.where(a > 3, np.nan, a))
    good = str(folder / "b.npy")
    for name, says in [
        ("gone.npy", "No such file"),
        ("text.npy", "no array in a .npy file"),
        ("empty.npy", "no array in a .npy file"),
        ("short.npy", "expected [rows, columns]"),
        ("nan.npy", "expected finite numbers"),
    ]:
        assert_one_line(winnow("solve", "lstsq", str(folder / name), good), 3, says)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("solve", "lacks its second word; expected one of lstsq"),
        ("solve lsq a b", "'lsq' is no solve command; expected one of lstsq"),
        ("solve lstsq a", "expected A B. See winnow solve lstsq --help"),
        ("solve lstsq a b --eps 0", "--eps: 0 is not above 0"),
        ("solve lstsq a b --eps nan", "--eps: nan is not above 0"),
        ("solve lstsq a b --ridge -1", "--ridge: -1 is not above 0"),
        ("solve lstsq a b --seed -1", "--seed: -1 is no seed"),
        ("solve lstsq a b --method qr", "--method: invalid choice: 'qr'"),
    ],
)
def test_a_line_that_does_not_parse_ends_in_one_line(winnow, line, says):
    assert_one_line(winnow(*line.split()), 2, says)


def test_every_problem_explains_itself(winnow):
    ran = winnow("solve", "lstsq", "--help")
    assert ran.out.startswith("usage: winnow solve lstsq A B [options]")
    assert "lstsq" in winnow("solve", "--help").out
