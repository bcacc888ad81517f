import json

from tests.cli import checkpoint
from tests.cli.conftest import assert_one_line


def test_one_step_gives_a_model_that_writes(winnow, tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "book.txt").write_text(checkpoint.text(4000, seed=3))
    out = tmp_path / "out"
    ran = winnow("train", "pico", "--corpus", tmp_path / "books", "--out", out, "--tokens", 1, "--quiet")
    assert (ran.code, ran.out) == (0, f"{out}\n")
    answer = json.loads(winnow("generate", out, "the wind", "--max-tokens", 3, "--ignore-eos", "--json").out)
    assert len(answer["token_ids"]) == 3


def test_unknown_recipe(winnow, tmp_path):
    ran = winnow("train", "nano", "--corpus", tmp_path, "--out", tmp_path / "out")
    assert_one_line(ran, 2, "'nano' is no recipe; expected one of pico, pico-llama")


def test_corpus_without_books(winnow, tmp_path):
    ran = winnow("train", "pico", "--corpus", tmp_path, "--out", tmp_path / "out")
    assert_one_line(ran, 3, "No .txt file below")
