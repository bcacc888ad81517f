"""Nothing is sent anywhere: a command that never reaches for the network works where there is none."""

import io
import socket

import pytest
from safetensors.torch import load_file

from tests.cli import checkpoint
from tests.engine.convert import bins
from winnow.cli import main


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Every socket and every name look-up fails; returned is who tried."""
    tried: list[tuple] = []

    def refuse(*args: object, **kwargs: object) -> None:
        tried.append(args)
        raise OSError("no network in this test")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def test_network_is_really_blocked(no_network):
    with pytest.raises(OSError, match="no network in this test"):
        socket.create_connection(("localhost", 80))
    assert len(no_network) == 1


def test_directory_is_used_without_a_single_look_up(no_network, tmp_path):
    model = checkpoint.write(tmp_path / "tiny")
    text = tmp_path / "text.txt"
    text.write_text(checkpoint.text(1500, seed=1))
    plan = tmp_path / "new" / "plan"
    calibrate = ["calibrate", str(model), "--text", str(text), "--target-kld", "0.2", "--out", str(plan)]
    lines = [
        ["generate", str(model), "the wind", "--max-tokens", "3", "--plan", str(plan)],
        ["fidelity", str(model), "--text", str(text), "--limit", "99", "--plan", str(plan)],
        ["perplexity", str(model), "--text", str(text), "--limit", "99"],
        ["inspect", str(model)],
    ]
    assert main([*calibrate, "--quiet", "--threads", "1"]) == 0
    assert [main([*line, *options]) for line in lines for options in ([], ["--offline"])] == [0] * 8
    assert no_network == []


def test_a_conversion_and_a_conversation_make_no_look_up(no_network, tmp_path, monkeypatch):
    model = checkpoint.write(tmp_path / "tiny")
    pickled = bins.write_bin(tmp_path / "bin", load_file(model / "model.safetensors"), checkpoint.config())
    (pickled / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    assert main(["convert", str(pickled), str(tmp_path / "new"), "--quiet"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("the wind\n"))
    assert main(["chat", str(tmp_path / "new"), "--max-tokens", "3"]) == 0
    assert no_network == []


def test_offline_hub_id_that_is_not_cached_is_refused_without_a_look_up(no_network, capsys):
    assert main(["generate", "winnow-tests/not-there", "x", "--offline"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("winnow: winnow-tests/not-there ")
    assert err.count("\n") == 1
    assert no_network == []


def test_hub_id_that_cannot_be_had_ends_in_one_line(no_network, capsys):
    assert main(["generate", "winnow-tests/not-there", "x"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
