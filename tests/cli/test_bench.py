import json
import sys
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import assert_one_line
from winnow.base.errors import ResourceError
from winnow.engine.bench import Turn
from winnow.engine.synthetic import OPT_SHAPES

MACHINE = {"cpu", "threads", "read_gb_per_s", "commit"}
ROW = {
    "engine",
    "shape",
    "dtype",
    "mlp_density",
    "head_density",
    "prompt_tokens",
    "tokens_per_second",
    "ms_per_token",
    "ttft_s",
    "bytes_per_token",
    "gb_per_s",
    "bandwidth_share",
    "rss_bytes",
}
SHORT = ("--repeats", 1, "--max-tokens", 3, "--prompt-tokens", 11, "--threads", 1, "--quiet")


@pytest.fixture
def tiny_shape(monkeypatch):
    """A shape that is timed in milliseconds."""
    monkeypatch.setitem(OPT_SHAPES, "tiny", (2, 64, 4))
    return "tiny"


def test_json_has_the_published_keys(winnow, planned):
    report = json.loads(winnow("bench", planned, *SHORT, "--json").out)
    assert set(report) >= {"machine", "rows"}
    assert set(report["machine"]) >= MACHINE
    assert all(set(row) >= ROW for row in report["rows"])
    assert [row["engine"] for row in report["rows"]] == ["winnow-dense", "winnow-sparse"]
    assert [row["mlp_density"] < 0.9 for row in report["rows"]] == [False, True]
    assert all(row["prompt_tokens"] == 11 and row["shape"] == "planned" for row in report["rows"])


def table_of(ran) -> list[list[str]]:
    lines = [line for line in ran.out.splitlines() if line[:1] in {"┃", "│"}]
    return [line[1:-1].replace("┃", "│").replace(" ", "").split("│") for line in lines]


def test_hf_runs_beside_on_the_same_checkpoint(winnow, model):
    ran = winnow("bench", model, *SHORT, "--against", "hf")
    assert ran.code == 0
    assert table_of(ran)[0] == ["engine", "winnow-dense", "hf"]
    assert "planned" not in ran.out
    assert "tiny, 11 tokens read" in ran.out


def test_shape_is_random_and_its_density_is_the_one_asked_for(winnow, tiny_shape):
    ran = winnow(
        "bench", "--shape", tiny_shape, "--density", 0.2, *SHORT[:2], *SHORT[4:], "--json", "--max-tokens", 20
    )
    report = json.loads(ran.out)
    assert [row["engine"] for row in report["rows"]] == ["winnow-dense", "winnow-sparse"]
    assert report["rows"][1]["mlp_density"] == pytest.approx(0.2, abs=0.05)
    assert (ran.code, bool(report["failures"])) in ((0, False), (1, True))
    assert ran.err.count("this run is void: ") == len(report["failures"])


def test_a_terminal_of_80_columns_has_room_for_three_engines(winnow, planned):
    ran = winnow("bench", planned, *SHORT, "--against", "hf")
    table = table_of(ran)
    assert table[0] == ["engine", "winnow-dense", "winnow-sparse", "hf"]
    assert [row[0] for row in table[1:6]] == ["dtype", "tokens/s", "min", "max", "mean"]
    assert max(len(line) for line in ran.out.splitlines() if line[:1] in {"┏", "│"}) <= 80


def test_markdown_and_a_picture_hold_every_engine(winnow, planned, tmp_path):
    picture = tmp_path / "race.svg"
    lines = winnow("bench", planned, *SHORT, "--markdown", "--svg", picture).out.splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert [row[0] for row in table] == ["engine", "---", "winnow-dense", "winnow-sparse"]
    assert len({len(row) for row in table}) == 1
    assert table[0][2:6] == ["tokens/s", "min", "max", "mean"]
    assert table[0][-1] == "RSS, all"
    assert table[2][-1].endswith((" MB", " GB"))
    texts = [text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {"winnow-dense bf16", "winnow-sparse bf16", "bytes read per token"} <= set(texts)


def test_lazy_reads_fewer_bytes_where_heads_are_left_out(winnow, tiny_shape):
    read = {}
    for kv in ("dense", "lazy"):
        options = ("--shape", tiny_shape, "--head-density", 0.5, "--max-tokens", 20, "--kv", kv, "--json")
        report = json.loads(winnow("bench", *options, *SHORT[:2], *SHORT[4:]).out)
        read[kv] = [row["bytes_per_token"] for row in report["rows"]]
    assert read["lazy"][0] == read["dense"][0]
    assert read["lazy"][1] < read["dense"][1]


def test_lazy_says_where_it_changes_nothing(winnow, model, tiny_shape):
    loud = [word for word in SHORT if word != "--quiet"]
    for named in ((model,), ("--shape", tiny_shape)):
        said = winnow("bench", *named, *loud, "--kv", "lazy").err
        assert said.count("--kv lazy changes nothing here: every head is computed") == 1
        assert "changes nothing" not in winnow("bench", *named, *loud).err


def test_prompt_is_the_beginning_of_the_text(winnow, model, held_out, tmp_path):
    assert winnow("bench", model, *SHORT, "--text", held_out).code == 0
    (tmp_path / "short.txt").write_text("wind")
    ran = winnow("bench", model, *SHORT, "--text", tmp_path / "short.txt")
    assert_one_line(ran, 2, "expected 11; give a longer --text")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--shape", "opt-0.1b"), "expected one of opt-125m"),
        (("--shape", "tiny", "--density", "1.5"), "--density is 1.5"),
        (("--shape", "tiny", "--density", "nan"), "--density is nan"),
        (("a-model", "--shape", "tiny"), "received MODEL and --shape"),
        (("--shape", "tiny", "--json", "--markdown"), "received --json and --markdown"),
        (("--shape", "tiny", "--svg", "race.png"), "--svg race.png does not end in .svg"),
    ],
)
def test_benches_that_mean_nothing_are_refused(winnow, tiny_shape, options, says):
    assert_one_line(winnow("bench", *options), 2, says)


def test_shape_beyond_memory_is_refused_before_it_is_drawn(winnow, tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 9000000 kB\n")
    monkeypatch.setattr("winnow.base.room.ROOT", tmp_path)
    assert_one_line(winnow("bench", "--shape", "opt-13b"), 4, "opt-13b needs", "9.22 GB are free")


def test_without_transformers_hf_says_what_to_install(winnow, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "winnow.engine.bench.hf", raising=False)
    assert_one_line(winnow("bench", model, *SHORT, "--against", "hf"), 4, "pip install 'winnow-llm[hf]'")


@pytest.mark.parametrize(
    ("engine", "module", "package"),
    [("llama.cpp", "llama_cpp", "llama-cpp-python"), ("ctranslate2", "ctranslate2", "ctranslate2")],
)
def test_a_missing_peer_is_told_before_a_model_is_opened(winnow, monkeypatch, engine, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    says = f"--against {engine} needs the package {package}: pip install 'winnow-llm[peers]'"
    assert_one_line(winnow("bench", "no-such-model", "--against", engine), 2, says)
    assert_one_line(winnow("bench", "--shape", "opt-13b", "--against", engine), 2, says)


class Peer:
    """Stands for an engine that is not installed."""

    name = "llama.cpp"
    dtype = "Q8_0"
    opened = 0
    fails = False

    def __init__(self, source, dtype, threads, longest, vocab_size) -> None:
        self.given = (source.config.family, dtype, threads, longest, vocab_size)
        assert self.given == ("opt", "int8", 1, 14, 50272)
        Peer.opened += 1

    def run(self, prompt, n_tokens):
        if self.fails:
            raise ResourceError("no more.")
        return Turn(0.1, (0.1,), tuple(range(n_tokens)), 1.0, 1e6)

    def close(self) -> None:
        Peer.opened -= 1


@pytest.fixture
def peers(monkeypatch):
    """llama.cpp and CTranslate2 as far as the command line sees of them, the latter of little use."""
    monkeypatch.setattr("winnow.cli.rivals.find_spec", lambda name: object())
    for name, content in {
        "llama_cpp": {"LlamaCppRunner": Peer},
        "translator": {"TranslatorRunner": None, "refused": lambda dtype: f"it holds no {dtype}"},
    }.items():
        module = ModuleType(name)
        for key, value in content.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, f"winnow.engine.bench.{name}", module)


def test_peers_run_beside_and_the_report_says_what_differs(winnow, tiny_shape, peers):
    line = ("bench", "--shape", tiny_shape, *SHORT, "--dtype", "int8", "--against", "ctranslate2,llama.cpp")
    report = json.loads(winnow(*line, "--json").out)
    assert [(row["engine"], row["dtype"]) for row in report["rows"]] == [
        ("winnow-dense", "int8"),
        ("winnow-sparse", "int8"),
        ("llama.cpp", "Q8_0"),
    ]
    notes = [note for note in report["notes"] if note.startswith(("llama.cpp", "ctranslate2"))]
    assert notes[0] == "llama.cpp runs OPT shapes as gpt2: GELU instead of ReLU, tokens not compared"
    assert notes[-1] == "ctranslate2 is left out: it holds no int8"
    assert f"Note: {notes[0]}." in winnow(*line).out
    assert Peer.opened == 0


def test_llama_cpp_runs_in_a_precision_of_its_own(winnow, tiny_shape, peers):
    # Peer expects to be given int8, which --dtype does not say.
    line = (
        "bench",
        "--shape",
        tiny_shape,
        *SHORT,
        "--dtype",
        "int4",
        "--against",
        "llama.cpp:q8_0",
        "--json",
    )
    report = json.loads(winnow(*line).out)
    assert [row["dtype"] for row in report["rows"]] == ["int4", "int4", "Q8_0"]
    assert any("holds int8 as Q8_0" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("against", "says"),
    [
        ("llama.cpp:q5_1", "expected one of llama.cpp:bf16, llama.cpp:q8_0, llama.cpp:q4_0"),
        ("hf:q4_0", "'hf:q4_0' is unknown"),
        ("llama.cpp:", "'llama.cpp:' is unknown"),
        ("llama.cpp,llama.cpp:q4_0", "llama.cpp is named twice"),
    ],
)
def test_precisions_that_no_engine_has_are_refused(winnow, tiny_shape, against, says):
    assert_one_line(winnow("bench", "--shape", tiny_shape, "--against", against), 2, says)


def test_a_peer_is_closed_when_the_race_fails(winnow, tiny_shape, peers, monkeypatch):
    monkeypatch.setattr(Peer, "fails", True)
    line = ("bench", "--shape", tiny_shape, *SHORT, "--dtype", "int8", "--against", "llama.cpp")
    assert_one_line(winnow(*line), 4, "no more.")
    assert Peer.opened == 0


def test_a_shape_needs_room_for_the_copies_of_its_rivals(winnow, tiny_shape, peers, tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr("winnow.base.room.ROOT", tmp_path)
    line = ("bench", "--shape", tiny_shape, *SHORT, "--dtype", "int8", "--against")
    n_weights = 50272 * 64 + 2050 * 64 + 2 * 12 * 64 * 64
    (tmp_path / "proc/meminfo").write_text(f"MemAvailable: {n_weights * 2.5 // 1024:.0f} kB\n")
    assert winnow(*line, "llama.cpp").code in (0, 1)
    assert_one_line(winnow(*line, "llama.cpp,ctranslate2"), 4, "tiny needs")


def test_peers_that_are_installed_run_on_a_checkpoint(winnow, model):
    for module in ("llama_cpp", "ctranslate2"):
        pytest.importorskip(module, reason=f"{module} is of the extra `peers`")
    against = ("--against", "llama.cpp,ctranslate2", "--dtype", "fp32", "--json")
    report = json.loads(winnow("bench", model, *SHORT, *against).out)
    assert [row["engine"] for row in report["rows"]] == ["winnow-dense", "llama.cpp", "ctranslate2"]
    assert all(row["dtype"] == "fp32" for row in report["rows"])


def test_lengths_show_memory_that_grows_beside_memory_that_does_not(winnow, model, tmp_path):
    line = ("bench", "--context", "256..2k", "--threads", 1, "--quiet")
    report = json.loads(winnow(*line, "--json").out)
    assert [row["tokens"] for row in report["rows"]] == [256, 1024, 2048]
    assert [row["exact_bytes"] for row in report["rows"]] == [n * 2 * 8 * 64 * 2 for n in (256, 1024, 2048)]
    assert len({row["streaming_bytes"] for row in report["rows"]}) == 1
    assert all(row["exact_us"] > 0 < row["streaming_us"] for row in report["rows"])
    assert set(report["machine"]) >= MACHINE
    picture = tmp_path / "lengths.svg"
    table = winnow("bench", model, "--context", "30,100", *line[3:], "--markdown", "--svg", picture).out
    assert "4 heads, 4 with keys, of width 16" in table
    assert [row.strip("| ").split(" | ")[0] for row in table.splitlines()[-2:]] == ["30", "100"]
    texts = {text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")}
    assert {"exact", "streaming"} <= texts


def test_lengths_beyond_memory_leave_exact_attention_out(winnow, monkeypatch):
    monkeypatch.setattr("winnow.engine.bench.lengths.free_memory_bytes", lambda: 2**20)
    shown = json.loads(winnow("bench", "--context", "128,1k", "--threads", 1, "--quiet", "--json").out)[
        "rows"
    ]
    assert [row["exact_us"] is None for row in shown] == [False, True]
    assert all(row["streaming_us"] > 0 for row in shown)


@pytest.mark.parametrize("lengths", ["", "0", "2k..1k", "4,4", "1m", "2k..", "k"])
def test_lengths_that_mean_nothing_are_refused(lengths, winnow):
    assert_one_line(winnow("bench", "--context", lengths), 2, "--context")


def test_a_race_against_others_has_no_lengths(winnow):
    assert_one_line(winnow("bench", "--context", "1k", "--against", "hf"), 2, "--context and --against")
