"""winnow solve two-layer."""

import json

import numpy as np
import pytest

from tests.cli.conftest import assert_one_line
from winnow.linalg import two_layer


@pytest.fixture
def files(tmp_path):
    draws = np.random.default_rng(3)
    arrays = {
        "a1": draws.normal(size=(90, 4)),
        "a2": draws.normal(size=(3, 90)),
        "b": np.abs(draws.normal(size=3)) / 10,
        "w": draws.uniform(0.1, 0.2, 90),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path, arrays


def line(folder, *options):
    return ("solve", "two-layer", *(str(folder / f"{name}.npy") for name in ("a1", "a2", "b")), *options)


@pytest.mark.parametrize("method", ["lm", "newton_cg", "full", "sketch", "w2"])
def test_fits_as_the_library_does_and_tells_why_it_ended(winnow, files, method):
    folder, arrays = files
    ran = winnow(*line(folder, "--w", "0.1", "--method", method, "--seed", "4", "--json"))
    told = json.loads(ran.out)
    found = two_layer(arrays["a1"], arrays["a2"], arrays["b"], 0.1, method=method, rng=4)
    assert ran.code == 0
    assert told["x"] == found.x.tolist()
    assert told["converged"]
    assert "within tol" in told["reason"]
    assert (told["method"], told["steps"]) == (method, len(found.history))
    assert not told["theorem_applies"]


def test_takes_weights_from_a_file_and_writes_x_whole(winnow, files):
    folder, arrays = files
    place = folder / "x.npy"
    ran = winnow(*line(folder, "--w", str(folder / "w.npy"), "--out", str(place)))
    assert ran.code == 0
    assert "90 x 4 by lm" in ran.out
    assert str(place) in ran.out
    assert "within tol" in ran.out
    assert (np.load(place) == two_layer(*arrays.values()).x).all()


def test_a_fit_that_ends_early_says_so_on_standard_error(winnow, files):
    folder, _ = files
    np.save(folder / "a2.npy", -np.ones((3, 90)))
    ran = winnow(*line(folder))
    assert ran.code == 0
    assert "Every output is off" in ran.err
    assert "Every output is off" not in winnow(*line(folder, "--quiet")).err


def test_files_that_do_not_fit_are_named(winnow, files):
    folder, _ = files
    np.save(folder / "a2.npy", np.ones((3, 80)))
    ran = winnow(*line(folder))
    assert_one_line(ran, 3, "A2 has 80 columns, A1 has 90 rows")


def test_what_is_no_array_or_missing_is_named(winnow, files):
    folder, _ = files
    (folder / "b.npy").write_text("no array")
    ran = winnow(*line(folder))
    assert_one_line(ran, 3, "b.npy is no array")
    missing = winnow(*line(folder, "--w", str(folder / "none.npy")))
    assert missing.code == 3


@pytest.mark.parametrize("options", [("--method", "sgd"), ("--seed", "-1"), ("--seed", "x")])
def test_options_out_of_range_are_usage(winnow, files, options):
    folder, _ = files
    assert winnow(*line(folder, *options)).code == 2
