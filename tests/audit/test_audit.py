"""Audits, defences, meters, adapters and update files: what is found, what is not, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from tests.audit.models import CAUSAL, VOCABULARY, WIDTH, tiny, with_lora
from tests.audit.test_attack import drawn
from winnow.audit.families import read_layout
from winnow.audit.front import Front
from winnow.audit.leakage import (
    audit_given,
    defence_matrix,
    gradients,
    gradients_of,
    identifiability,
    implied,
    matrix_finding,
    noise_of,
    precheck,
    read_defence,
    read_update,
    span_attack,
)
from winnow.audit.leakage.lora import capacity, certified_tokens
from winnow.audit.leakage.meters import bulk_noise
from winnow.base.errors import ModelError, ResourceError, UsageError


@pytest.mark.parametrize("family", CAUSAL)
def test_an_audit_finds_its_planted_text_and_nothing_in_noise(family, rng):
    found = gradients(tiny(family, rng), drawn(rng))
    assert not found.controls.failures
    assert (found.verdict, found.score.exact_match) == ("exposed", 1.0)
    finding = found.finding("a gradient")
    assert (finding.headline, finding.exact_match, finding.token_recall) == ("exposed", 1.0, 1.0)
    assert {piece.token_ids for piece in finding.recovered} == set(found.recovery.texts)


def test_an_audit_whose_control_fails_is_void(rng, monkeypatch):
    model = tiny("gpt2", rng)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.zero_()  # nothing flows back to the embeddings' readers
        model.transformer.h[0].attn.c_proj.weight.zero_()
    assert gradients(model, drawn(rng)).finding("a gradient").headline.startswith("void: ")


@pytest.mark.parametrize("defence", ["clip=0.01", "bf16", "freeze=wpe", "sum=1"])
def test_these_defences_prevent_nothing(defence, rng):
    found = gradients(tiny("gpt2", rng), drawn(rng), defence=defence)
    assert found.score.token_recall > 0.7, defence


@pytest.mark.parametrize("defence", ["noise=1", "top-k=0.05"])
def test_these_defences_leave_no_whole_text(defence, rng):
    found = gradients(tiny("gpt2", rng), drawn(rng), defence=defence)
    assert found.score.exact_match == 0
    assert found.verdict in ("nothing found", "partly exposed")


def test_the_matrix_shows_both_epsilons_and_leaves_the_model_as_it_was(rng):
    model = tiny("gpt2", rng)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain, noisy = defence_matrix(model, drawn(rng), ["none", "noise=2"])
    assert (plain.account, plain.bound) == (None, 1.0)
    assert noisy.account.server == pytest.approx(1.99, abs=0.01)
    assert noisy.bound < 0.2
    assert plain.loss_after < plain.loss_before
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize(("rank", "n_found"), [(16, 9), (9, 0), (5, 0)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapters_of_more_rank_than_inputs_show_them_and_others_nothing(family, rank, n_found, rng):
    model = tiny(family, rng)
    (text,) = drawn(rng, (10,))
    assert len(set(text[:-1])) == 9
    found = gradients(model, [text], defence=f"lora={rank}")
    assert found.score.token_recall == pytest.approx(n_found / 10)
    assert found.verdict == ("partly exposed" if n_found else "nothing found")
    assert found.recovery.n_candidates <= n_found


def test_batches_of_other_clients_hide_a_text_once_they_fill_the_width(rng):
    model = tiny("gpt2", rng)
    texts = drawn(rng)
    few, many = (gradients(model, texts, defence=f"sum={clients}") for clients in (2, 9))
    assert few.score.exact_match == 1.0
    assert len(few.recovery.texts) == 6
    assert (many.score.exact_match, "saturated" in many.recovery.reason) == (0.0, True)


def test_a_finding_says_what_noise_it_measured_and_what_that_is_worth(rng):
    model = tiny("llama", rng)
    details = gradients(model, drawn(rng), defence="noise=1").finding("a gradient").details
    assert details["noise_kind"] == "gaussian"
    assert details["noise_multiplier_implied"] == pytest.approx(1.0, rel=0.02)
    assert details["epsilon_server_implied"] == pytest.approx(4.38, rel=0.05)
    plain = gradients(model, drawn(rng), defence="bf16").finding("a gradient").details
    assert plain["noise_kind"] == "none"
    assert "epsilon_server_implied" not in plain


def test_a_given_update_is_worth_an_epsilon_only_beside_its_clip(rng):
    model = tiny("llama", rng)
    sent = read_defence("noise=1").gradients(model, drawn(rng), rng)
    assert audit_given(model, sent).implied is None
    known = audit_given(model, sent, clip=1.0, records=3).implied
    assert known.release.noise == pytest.approx(1.0, rel=0.02)


def test_the_matrix_has_one_axis_of_noise(rng):
    rows = defence_matrix(tiny("gpt2", rng), drawn(rng), ["noise=2", "bf16", "none", "noise=0.5"])
    finding = matrix_finding(rows, "a gradient")
    assert [row[0] for row in finding.tables[1].rows] == [0.0, 0.5, 2.0]
    assert len(finding.plots) == 3
    bounds = [row[5] for row in finding.tables[1].rows]
    assert bounds == sorted(bounds, reverse=True)
    assert matrix_finding(rows[1:3], "a gradient").plots == ()


@pytest.mark.parametrize(
    "text", ["fog", "lora=2.5", "noise", "noise=0", "top-k=1.5", "sum=2.5", "bf16=3", "freeze", "clip=nan"]
)
def test_defences_that_mean_nothing_are_refused(text):
    with pytest.raises(UsageError):
        read_defence(text)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_that_must_be_zero_measure_the_noise_within_two_percent(family, rng):
    model = tiny(family, rng)
    sent = read_defence("noise=0.7").gradients(model, drawn(rng), rng)
    found = noise_of(Front.of(model), sent)
    deviation = 0.7 / 3
    assert "rows" in found.source
    # 30 positions of 48 entries are fewer than the 2,500 that two percent take
    assert found.deviation == pytest.approx(deviation, rel=0.02 if found.n_entries > 2500 else 0.06)


def test_noise_that_was_not_added_measures_zero_and_has_no_epsilon(rng):
    model = tiny("opt", rng)
    found = noise_of(Front.of(model), read_defence("clip=1").gradients(model, drawn(rng), rng))
    assert found.deviation == 0
    assert implied(found, clip=1.0, batch=3, rate=1.0, steps=1, delta=1e-5) is None


def test_measured_noise_implies_the_configured_epsilon(rng):
    model = tiny("llama", rng)
    found = noise_of(Front.of(model), read_defence("noise=1").gradients(model, drawn(rng), rng))
    known = implied(found, clip=1.0, batch=3, rate=1.0, steps=1, delta=1e-5)
    assert known.server == pytest.approx(4.38, rel=0.05)


@pytest.mark.parametrize("rank", [0, 5, 20])
def test_the_bulk_measures_noise_beside_a_signal(rank, rng):
    noise = 0.01 * torch.randn(64, 200, generator=rng)
    signal = torch.randn(64, rank, generator=rng) @ torch.randn(rank, 200, generator=rng)
    assert bulk_noise(noise + signal) == pytest.approx(0.01, rel=0.02)


def test_the_precheck_counts_what_shows(rng):
    model = tiny("llama", rng)
    texts = drawn(rng)
    found = precheck(model, gradients_of(model, texts))
    inputs = {token for text in texts for token in text[:-1]}
    assert found.n_tokens == len(inputs)
    assert found.layers[0].rank == len(inputs)
    assert found.layers[0].width == WIDTH
    assert found.clients == -(-WIDTH // min(found.layers[0].rank, found.layers[1].rank))


def test_the_cramer_rao_bound_scales_with_the_noise_and_finds_hidden_directions(rng):
    matrix = torch.randn(7, 4, generator=rng, dtype=torch.float64)
    found = identifiability(lambda x: matrix @ x, torch.zeros(4, dtype=torch.float64))
    exact = 0.1**2 * float(torch.linalg.inv(matrix.T @ matrix).trace()) / 4
    assert found.error(0.1) == pytest.approx(exact)
    assert found.error(found.noise_for(0.25)) == pytest.approx(0.25)
    assert (found.rank, found.is_recoverable) == (4, True)
    matrix[:, 2] = matrix[:, 1]
    hidden = identifiability(lambda x: matrix @ x, torch.zeros(4, dtype=torch.float64))
    assert (hidden.rank, hidden.is_recoverable) == (3, False)
    with pytest.raises(ResourceError, match="the input has 5000 entries"):
        identifiability(lambda x: x, torch.zeros(5000))


def lora_rounds(rank: int, n_distinct: int, n_rounds: int, rng: torch.Generator):
    """Return a model with adapters on q, k and v, its text, and the gradients of successive rounds on it."""
    model = tiny("llama", rng)
    paths = [place.module for place in read_layout(model).layers[0].reads]
    # In float32 the rounds, nearly parallel, tell the last directions only a round later.
    with_lora(model, paths, rank, rng).double()
    text = (torch.randperm(VOCABULARY - 2, generator=rng)[: n_distinct + 1] + 2).tolist()
    rounds = []
    for _ in range(n_rounds):
        given = gradients_of(model, [text])
        rounds.append(given)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in given:
                    p.sub_(3.0 * given[name])
    return model, text, rounds


@pytest.mark.parametrize(("rank", "n_distinct", "n_found"), [(16, 11, 11), (8, 8, 0), (8, 20, 0)])
def test_the_first_lora_round_shows_fewer_than_rank_inputs_or_none(rank, n_distinct, n_found, rng):
    model, text, rounds = lora_rounds(rank, n_distinct, 1, rng)
    found = certified_tokens(Front.of(model), rounds)[0].tolist()
    assert len(found) == n_found
    assert set(found) <= set(text[:-1])


@pytest.mark.parametrize(("n_rounds", "n_found"), [(2, 0), (3, 20)])
def test_lora_rounds_show_all_once_their_capacity_reaches_the_inputs(n_rounds, n_found, rng):
    model, text, rounds = lora_rounds(4, 20, n_rounds, rng)
    front = Front.of(model)
    later = rounds[1:]  # in the first, dA is zero
    assert capacity(front, len(later)) == 12 * (n_rounds - 1)
    found = certified_tokens(front, later)[0].tolist()
    assert sorted(found) == (sorted(text[:-1]) if n_found else [])


def test_an_update_of_differences_and_one_of_weights_give_away_the_same(rng, tmp_path):
    model = tiny("opt", rng)
    texts = drawn(rng)
    steps = {name: -0.01 * g for name, g in gradients_of(model, texts).items()}
    weights = {name: p.detach() + steps[name] for name, p in model.named_parameters() if name in steps}
    save_file({n: t.contiguous() for n, t in steps.items()}, tmp_path / "steps.safetensors")
    save_file({n: t.contiguous() for n, t in weights.items()}, tmp_path / "weights.safetensors")
    found = audit_given(model, read_update(tmp_path / "steps.safetensors", model))
    assert sorted(found.recovery.texts) == sorted(map(tuple, texts))
    assert (found.verdict, found.score) == ("exposed", None)
    rounded = read_update(tmp_path / "weights.safetensors", model)
    assert all((rounded[name] - steps[name]).abs().max() < 1e-6 for name in steps)


def broken(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = "model.decoder.layers.0.fc1.weight"
    match how:
        case "missing":
            del tensors[name]
        case "extra":
            tensors["more"] = torch.zeros(2)
        case "nan":
            tensors[name][3, 1] = torch.nan
        case "shape":
            tensors[name] = tensors[name][:-1]
    return tensors


BROKEN = {
    "missing": "lacks model.decoder.layers.0.fc1.weight",
    "extra": "holds more, which the base model has not",
    "nan": "fc1.weight holds NaN or infinity",
    "shape": r"fc1.weight is \(99, 48\), the base model's \(100, 48\)",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_update_is_refused_in_one_line(how, rng, tmp_path):
    model = tiny("opt", rng)
    tensors = {n: p.detach().clone() for n, p in model.named_parameters()}
    save_file(broken(tensors, how), tmp_path / "update.safetensors")
    with pytest.raises(ModelError, match=BROKEN[how]) as error:
        read_update(tmp_path / "update.safetensors", model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("update.pt", b"\x80\x04\x95cbuiltins\nexec\n"),
        ("update.bin", b"PK\x03\x04rest"),
        ("update.safetensors", b"\x80\x04\x95cbuiltins\nexec\n"),
        ("update.safetensors", b""),
        ("update.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"),
    ],
)
def test_pickles_and_truncated_files_are_never_opened(name, content, rng, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"pickle|no whole safetensors file"):
        read_update(tmp_path / name, tiny("opt", rng))


def test_a_file_that_is_not_there_is_said_so(rng, tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        read_update(tmp_path / "none.safetensors", tiny("opt", rng))


def test_known_noise_keeps_strong_directions_and_drops_the_rest(rng):
    model = tiny("gpt2", rng)
    given = gradients_of(model, drawn(rng))
    scale = max(float(g.abs().max()) for g in given.values())
    found = span_attack(model, given, noise=scale)
    assert found.texts == ()
    assert found.reason.startswith("no direction") or found.ranks[0] < 16
