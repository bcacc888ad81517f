"""Ratios: what was asked is compared with what was measured, losses are named, the picture is current."""

import json
from xml.etree import ElementTree

import pytest
from benchmarks.context import Steps, grown
from benchmarks.ratios import ASKED, PICTURE, RACES, assembled, picture

from tests.house.source import ROOT

RESULT = ROOT / "benchmarks/results/ratios.json"
SPEEDS = {"winnow-dense": 17.0, "winnow-sparse": 35.0, "hf": 5.0, "llama.cpp": 20.0, "ctranslate2": 10.0}


def row(engine, speed, ttft_s=1.0) -> dict:
    return {
        "engine": engine,
        "shape": "opt-1.3b",
        "dtype": "bf16",
        "prompt_tokens": 128,
        "tokens_per_second": speed,
        "ms_per_token": 1000 / speed,
        "ttft_s": ttft_s,
        "bytes_per_token": 2.6e9,
        "bandwidth_share": speed / 25,
    }


def report(speeds=SPEEDS, commit="abc", **ttft_s) -> dict:
    machine = {"cpu": "x", "threads": 2, "read_gb_per_s": 60.0, "read_gb_per_s_min": 50.0, "commit": commit}
    rows = [row(engine, speed, ttft_s.get(engine, 1.0)) for engine, speed in speeds.items()]
    return {"machine": machine, "rows": rows, "notes": ["a note"]}


def test_every_ratio_is_held_against_the_best_of_its_rivals():
    required = assembled({"opt-1.3b-bf16": report()})["required"]
    found = [(r["setting"], r["against"], round(r["measured_ratio"], 3), r["is_met"]) for r in required]
    assert found == [
        ("dense", "llama.cpp bf16", 0.85, False),
        ("0.10/0.5", "hf bf16", 7.0, False),
        ("0.10/0.5", "winnow-dense bf16", 2.059, True),
        ("0.10/0.5", "llama.cpp bf16", 1.75, False),
    ]


@pytest.mark.parametrize(("mean", "is_met"), [(34.5, True), (33.9, False)])
def test_a_ratio_is_met_with_the_pauses_and_without(mean, is_met):
    given = report()
    for row in given["rows"]:
        row["tokens_per_second_mean"] = mean if row["engine"] == "winnow-sparse" else row["tokens_per_second"]
    found = assembled({"opt-1.3b-bf16": given})
    own = found["required"][2]
    assert (own["mean_ratio"], own["is_met"]) == (pytest.approx(mean / 17), is_met)
    assert found["bandwidth"][1]["mean_share"] == pytest.approx(mean / 25)


def test_beside_each_ratio_stands_what_memory_would_allow():
    required = assembled({"opt-1.3b-bf16": report()})["required"]
    # 2.6 GB at 60 GB/s: 23.08 tokens per second
    limits = [(r["against"], round(r["memory_limit_ratio"], 2)) for r in required]
    assert limits == [
        ("llama.cpp bf16", 1.15), ("hf bf16", 4.62), ("winnow-dense bf16", 1.36), ("llama.cpp bf16", 1.15),
    ]  # fmt: skip


def test_a_rival_that_did_not_run_is_no_victory():
    speeds = {engine: SPEEDS[engine] for engine in ("winnow-dense", "winnow-sparse", "ctranslate2")}
    with pytest.raises(SystemExit, match=r"opt-1.3b-bf16 has no row of llama.cpp"):
        assembled({"opt-1.3b-bf16": report(speeds)})


def test_losses_are_those_of_our_best_engine():
    result = assembled({"opt-1.3b-bf16": report({**SPEEDS, "ctranslate2": 70.0}, hf=0.25)})
    found = [(r["what"], r["engine"], r["against"], r["slower_by"]) for r in result["losses"]]
    assert found == [
        ("decoding", "winnow-sparse", "ctranslate2 bf16", 2.0),
        ("the prompt", "winnow-dense", "hf bf16", 4.0),
    ]
    assert [(each["engine"], each["is_met"]) for each in result["bandwidth"]] == [
        ("winnow-dense", False),
        ("winnow-sparse", True),
    ]


def test_races_of_several_commits_say_so():
    races = {"opt-1.3b-bf16": report(commit="a"), "opt-6.7b-int4": report(commit="b")}
    assert assembled(races)["machine"]["commit"] == "a, b"


def test_everything_asked_belongs_to_a_race():
    assert {asked.race for asked in ASKED} == set(RACES)


def test_the_picture_has_a_point_per_row():
    drawn = picture(assembled({"opt-1.3b-bf16": report()}))
    points = ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(points)) == len(SPEEDS)


def test_the_picture_is_drawn_from_the_committed_rows():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert PICTURE.read_text(encoding="utf-8") == picture(result), "run python -m benchmarks.ratios"
    rows = [each for each in result["rows"] if each["shape"] == "opt-1.3b"]
    found = ElementTree.fromstring(picture(result)).iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(found)) == len(rows)


@pytest.mark.parametrize("series", ["ratios", "ratios-zen-4"])
def test_the_committed_table_holds_its_races_and_no_others(series):
    races = {name: ROOT / f"benchmarks/results/{series}/{name}.json" for name in RACES}
    reports = {name: json.loads(at.read_text(encoding="utf-8")) for name, at in races.items() if at.exists()}
    committed = json.loads((ROOT / f"benchmarks/results/{series}.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(assembled(reports)))


def test_growth_is_counted_from_the_shortest_context_within_a_round():
    taken = [
        Steps(
            engine,
            n_read,
            [
                state * (start + growth * n_read) / 1e3 for state in (1.0, 2.0, 1.0)
            ],  # a slow round in the middle
            [start_bytes + each * n_read] * 3,
        )
        for n_read in (100, 500)
        for engine, start, growth, start_bytes, each in (
            ("winnow-dense", 40.0, 0.04, 2e9, 1e6),
            ("winnow-sparse", 20.0, 0.03, 1e9, 5e5),
        )
    ]
    result = grown(taken, [40.0, 60.0, 50.0])
    assert result["rows"][2]["kv_growth_bytes"] == pytest.approx(4e8)
    assert result["rows"][2]["kv_growth_limit_ms"] == pytest.approx(8.0)
    assert result["rows"][3]["growth_ms"] == pytest.approx(12.0)
    (compared,) = result["compared"]
    assert compared["bytes_growth_ratio"] == pytest.approx(0.5)
    assert compared["time_growth_ratio"] == pytest.approx(0.75)
