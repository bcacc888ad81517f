import json

import torch

from winnow.kernels import isa_levels


def test_json_tells_what_a_slow_run_may_come_from(winnow):
    found = json.loads(winnow("doctor", "--threads", 1, "--json").out)
    assert found["threads"] == 1
    assert found["torch"] == torch.__version__
    assert found["has_compiled_kernels"] == bool(found["isa_levels"])
    assert found["isa_levels"] == list(isa_levels())
    assert found["read_gb_per_s"] > 0.1
    assert found["memory_free_bytes"] > 1e6
    assert found["cpu"]


def test_one_line_per_fact_for_people(winnow):
    ran = winnow("doctor", "--threads", 2)
    lines = dict(line.split(None, 1) for line in ran.out.splitlines()[1:] if line.startswith("  "))
    assert lines["threads"].strip() == "2"
    assert lines["memory_free_bytes"].strip().endswith(" GB")
    assert lines["has_compiled_kernels"].strip() in ("yes", "no")


def test_missing_kernels_are_named_with_the_cure(winnow, monkeypatch):
    monkeypatch.setattr("winnow.cli.doctor.isa_levels", lambda: ())
    assert "install a C++17 compiler" in winnow("doctor", "--threads", 1).out
