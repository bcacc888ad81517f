"""Transformers models with winnowed MLPs."""

import dataclasses
import functools
import gc
import sys
import weakref

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    TextStreamer,
    pipeline,
)

import winnow
from tests.engine.predictors import gates, head_predictors, low_rank
from tests.engine.tiny import VARIANTS, tiny_model
from winnow.base.errors import ModelError, UsageError
from winnow.base.rng import generator
from winnow.engine import DictSource, KvCache, bundled, load, load_weights, parse_config
from winnow.engine.decode import Decoder
from winnow.engine.model import prefill
from winnow.engine.sparsity import Lookahead, Plan, compare, find_plan, windows
from winnow.engine.sparsity.adapter import WinnowedModule
from winnow.engine.sparsity.plan import Provenance
from winnow.kernels import open_cpu

PROMPT = [5, 17, 101, 44, 9]
N_NEW = 12
PICO = bundled("pico")


def plan_of(layers, heads=(), **changes) -> Plan:
    said = Provenance("a" * 64, "b" * 64, "same-layer", "svd", 0.001, 0.0005, 0.2, 0.99, 100)
    return Plan(dataclasses.replace(said, **changes), tuple(layers), heads=tuple(heads))


def fresh(name, dtype=torch.float32):
    return tiny_model(next(v for v in VARIANTS if v.name == name), generator(7)).to(dtype)


@functools.cache
def weights_of(name, dtype=torch.float32, *, by_head=False):
    model = fresh(name)
    source = DictSource(parse_config(model.config.to_dict()), model.state_dict())
    return load_weights(source, dtype, by_head=by_head)


def by_winnow(weights, layers, n_new=N_NEW, heads=(), prompt=PROMPT):
    """Return greedy tokens and the logits of every step, by Winnow's own decoder."""
    cache = KvCache(weights.config, 64, weights.embed.dtype)
    decoding = Decoder(weights, layers, open_cpu(1), heads).start(cache)
    with torch.inference_mode():
        logits = prefill(weights, torch.tensor(prompt), cache)
    rows, tokens = [logits], []
    for _ in range(n_new):
        tokens.append(int(rows[-1].argmax()))
        rows.append(torch.from_numpy(decoding.step(tokens[-1])[0]))
    return tokens, torch.stack(rows[:-1])


def by_transformers(model, prompts=(PROMPT,), n_new=N_NEW):
    made = model.generate(
        torch.tensor(prompts),
        max_new_tokens=n_new,
        min_new_tokens=n_new,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[:, len(prompts[0]) :].tolist(), torch.stack(made.logits)


def mixed(weights, rng):
    """Return a plan's layers with another mode in each."""
    ahead, half = low_rank(weights, rng, Lookahead.NEXT), low_rank(weights, rng, Lookahead.HALF)
    first = gates(weights, 0.3)[0] if weights.config.is_gated else None
    return first, ahead[1], half[2]


@pytest.mark.parametrize(
    "name", ["opt", "opt-350m", "opt-bare-maps", "llama", "llama-biases", "mistral", "qwen3"]
)
def test_logits_and_tokens_are_those_of_winnows_own_decoder(name, rng):
    layers = mixed(weights_of(name), rng)
    tokens, rows = by_winnow(weights_of(name), layers)
    model = winnow.sparsify(fresh(name), plan_of(layers), threads=1)
    found, logits = by_transformers(model)
    assert found == [tokens]
    torch.testing.assert_close(logits[:, 0], rows, rtol=1e-3, atol=1e-4)
    # The plan does leave something out: the dense model says something else.
    assert not torch.allclose(logits[:, 0], by_transformers(fresh(name))[1][:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "name", ["opt", "opt-350m", "opt-bare-maps", "llama-grouped", "llama-biases", "qwen3"]
)
def test_heads_are_left_out_as_winnows_own_decoder_leaves_them_out(name, attention, rng):
    weights = weights_of(name, by_head=True)
    layers, heads = mixed(weights, rng), (*head_predictors(weights, rng)[:2], None)
    tokens, rows = by_winnow(weights, layers, heads=heads)
    model = fresh(name)
    model.set_attn_implementation(attention)
    found, logits = by_transformers(winnow.sparsify(model, plan_of(layers, heads), threads=1))
    assert found == [tokens]
    torch.testing.assert_close(logits[:, 0], rows, rtol=1e-3, atol=1e-4)
    # The heads matter: with all of them, the same neurons say something else after the prompt's own row.
    whole = by_transformers(winnow.sparsify(fresh(name), plan_of(layers), threads=1))[1]
    torch.testing.assert_close(logits[0], whole[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[1:2], whole[1:2], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["opt", "llama-grouped"])
def test_a_plan_of_density_one_is_the_dense_model(name, rng):
    weights = weights_of(name)
    heads = head_predictors(weights, rng, margin=1e6)
    dense, rows = by_transformers(fresh(name))
    found, logits = by_transformers(winnow.sparsify(fresh(name), plan_of((None,) * 3, heads), threads=1))
    assert found == dense
    torch.testing.assert_close(logits, rows, rtol=1e-4, atol=1e-4)


def test_each_row_of_a_batch_has_heads_of_its_own(rng):
    weights = weights_of("llama-grouped", by_head=True)
    layers, heads = mixed(weights, rng), head_predictors(weights, rng)
    model = winnow.sparsify(fresh("llama-grouped"), plan_of(layers, heads), threads=2)
    others = [[3, 150, 77, 21, 60], [88, 2, 9, 140, 33]]
    together, _ = by_transformers(model, (PROMPT, *others))
    assert together == [by_winnow(weights, layers, heads=heads, prompt=each)[0] for each in (PROMPT, *others)]


def test_a_winnowed_model_in_bfloat16_leaves_heads_out_too(rng):
    weights = weights_of("opt")
    layers, heads = (None,) * 3, head_predictors(weights, rng)
    ids, rows = torch.tensor([[7]]), []
    for dtype in (torch.float32, torch.bfloat16):
        model = winnow.sparsify(fresh("opt", dtype), plan_of(layers, heads), threads=1)
        rows.append(model(ids).logits[0, 0].float())
    dense = fresh("opt")(ids).logits[0, 0]
    assert (rows[1] - rows[0]).norm() < 0.05 * rows[0].norm()
    assert (rows[1] - dense).norm() > 0.2 * dense.norm()


def test_attentions_whose_heads_cannot_be_left_out_are_refused_with_the_reason(rng):
    heads = head_predictors(weights_of("opt"), rng)
    plan = plan_of((None,) * 3, heads)
    other = fresh("opt")
    other.config._attn_implementation = "flex_attention"
    with pytest.raises(UsageError, match=r"attention is 'flex_attention'; expected eager or sdpa"):
        winnow.sparsify(other, plan)
    adapted = fresh("opt")
    adapted.model.decoder.layers[2].self_attn.q_proj = torch.nn.Sequential(torch.nn.Linear(40, 40))
    with pytest.raises(ModelError, match=r"q_proj is a Sequential"):
        winnow.sparsify(adapted, plan)
    half = fresh("opt")
    for layer in half.model.decoder.layers:
        layer.self_attn.to(torch.bfloat16)
    with pytest.raises(UsageError, match="attentions are bf16, its MLPs fp32"):
        winnow.sparsify(half, plan)
    with pytest.raises(ModelError, match="has head shapes"):
        winnow.sparsify(fresh("llama-grouped"), plan)
    for model in (other, adapted, half):  # a plan with all heads asks nothing of attention
        assert not isinstance(model.model.decoder.layers[0].fc1, WinnowedModule)
        winnow.sparsify(model, plan_of((None,) * 3))


@pytest.mark.parametrize("lookahead", Lookahead, ids=str)
def test_every_lookahead_reads_what_the_decoder_reads(lookahead, rng):
    layers = low_rank(weights_of("opt"), rng, lookahead)
    tokens, rows = by_winnow(weights_of("opt"), layers)
    found, logits = by_transformers(winnow.sparsify(fresh("opt"), plan_of(layers), threads=1))
    assert found == [tokens]
    torch.testing.assert_close(logits[:, 0], rows, rtol=1e-3, atol=1e-4)


def test_each_row_of_a_batch_has_neurons_of_its_own(rng):
    layers = mixed(weights_of("llama"), rng)
    model = winnow.sparsify(fresh("llama"), plan_of(layers), threads=1)
    other = [3, 150, 77, 21, 60]
    together, _ = by_transformers(model, (PROMPT, other))
    assert together == [by_transformers(model, (each,))[0][0] for each in (PROMPT, other)]


def test_a_prompt_is_read_densely(rng):
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        dense = fresh("llama")(ids).logits
        sparse = winnow.sparsify(fresh("llama"), plan_of(low_rank(weights_of("llama"), rng)), threads=1)(
            ids
        ).logits
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4)


def test_a_plan_without_predictors_is_the_dense_model_to_rounding():
    dense, _ = by_transformers(fresh("opt"))
    assert by_transformers(winnow.sparsify(fresh("opt"), plan_of((None,) * 3), threads=1))[0] == dense


def test_the_original_weights_are_freed():
    model = fresh("opt")
    layers = model.model.decoder.layers
    old = [
        weakref.ref(layers[0].fc1.weight),
        weakref.ref(layers[2].fc2),
        weakref.ref(layers[1].self_attn.out_proj.weight),
    ]
    heads = head_predictors(weights_of("opt"), generator(3))
    assert winnow.sparsify(model, plan_of((None,) * 3, heads), threads=1) is model
    gc.collect()
    assert [each() for each in old] == [None, None, None]


@pytest.fixture(scope="module")
def pico():
    return winnow.sparsify(
        AutoModelForCausalLM.from_pretrained(PICO, dtype=torch.float32), find_plan(PICO), threads=1
    )


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PICO)


def test_pico_says_what_winnow_says(pico, tokenizer):
    engine = load(PICO, dtype="fp32", threads=1)
    expected = engine.generate("Once upon a time", max_tokens=20, ignore_eos=True)
    assert expected.stats.mlp_density < 0.5
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    assert ids[0].tolist() == engine.tokenizer.encode("Once upon a time")
    made = pico.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    assert made[0, ids.shape[1] :].tolist() == expected.token_ids


def test_pipelines_and_streamers_run(pico, tokenizer, capsys):
    write = pipeline("text-generation", model=pico, tokenizer=tokenizer)
    text = write("The wizard", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert text.startswith("The wizard")
    assert len(text) > len("The wizard")
    ids = tokenizer("The wizard", return_tensors="pt")
    pico.generate(**ids, max_new_tokens=8, do_sample=False, streamer=TextStreamer(tokenizer))
    assert text in capsys.readouterr().out


def test_a_plan_of_another_model_is_refused_where_the_origin_is_known(rng):
    model = AutoModelForCausalLM.from_pretrained(PICO, dtype=torch.float32)
    mine = load(PICO, dtype="fp32", threads=1).plan
    other = dataclasses.replace(mine, provenance=dataclasses.replace(mine.provenance, model_hash="c" * 64))
    with pytest.raises(ModelError, match="The plan belongs to the model cccccccccccc"):
        winnow.sparsify(model, other)


def test_a_plan_of_other_shapes_is_refused_whatever_the_origin(rng):
    layers = low_rank(weights_of("llama"), rng)
    with pytest.raises(ModelError, match="shapes"):
        winnow.sparsify(fresh("opt"), plan_of(layers))
    with pytest.raises(ModelError, match="has 2 layers"):
        winnow.sparsify(fresh("llama"), plan_of(layers[:2]))
    with pytest.raises(ModelError, match="has a gate in layer 0"):
        winnow.sparsify(fresh("opt"), plan_of(gates(weights_of("opt"), 0.3)))


def test_a_precision_that_the_plan_does_not_list_is_refused_by_name():
    with pytest.raises(UsageError, match="was made for fp32 weights, these are bf16"):
        winnow.sparsify(fresh("opt", torch.bfloat16), plan_of((None,) * 3, precisions=("fp32",)))


def test_what_cannot_be_winnowed_is_refused_with_the_reason(monkeypatch):
    plan = plan_of((None,) * 3)
    with pytest.raises(UsageError, match="received a Linear; expected a transformers model"):
        winnow.sparsify(torch.nn.Linear(3, 4), plan)
    tiny_gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(ModelError, match=r"model_type.*gpt2"):
        winnow.sparsify(tiny_gpt2, plan)
    with pytest.raises(UsageError, match=r"are torch\.float16 on cpu"):
        winnow.sparsify(fresh("opt", torch.float16), plan)
    adapted = fresh("opt")
    adapted.model.decoder.layers[1].fc2 = torch.nn.Sequential(torch.nn.Linear(3, 4))
    with pytest.raises(ModelError, match="fc2 is a Sequential"):
        winnow.sparsify(adapted, plan)
    with pytest.raises(UsageError, match="threads is 0"):
        winnow.sparsify(fresh("opt"), plan, threads=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'winnow-llm\[hf\]'"):
        winnow.sparsify(fresh("opt"), plan)


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_a_winnowed_model_is_not_winnowed_twice(name):
    model = winnow.sparsify(fresh(name), plan_of((None,) * 3), threads=1)
    with pytest.raises(ModelError, match="winnowed already"):
        winnow.sparsify(model, plan_of((None,) * 3), threads=1)


def test_a_refused_model_is_left_as_it_was(rng):
    model = fresh("opt").train().requires_grad_(True)
    before = list(model.model.decoder.layers[0].children())
    with pytest.raises(ModelError):
        winnow.sparsify(model, plan_of((None,) * 2))
    assert list(model.model.decoder.layers[0].children()) == before
    assert model.training
    assert all(each.requires_grad for each in model.parameters())


def test_what_a_winnowed_model_cannot_do_it_refuses(tmp_path):
    model = winnow.sparsify(fresh("opt"), plan_of((None,) * 3), threads=1)
    with pytest.raises(UsageError, match="cannot be saved"):
        model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no gradients"):
        model(inputs_embeds=torch.randn(1, 4, 40, requires_grad=True))


def test_fidelity_is_that_of_the_definition_in_the_weights_own_type(rng):
    """What `compare` measures of a plan is what the winnowed model then does, token by token."""
    weights, layers = weights_of("llama"), mixed(weights_of("llama"), rng)
    ids = torch.randint(0, 211, (40,), generator=rng).tolist()
    measured = compare(weights, plan_of(layers), windows(ids, [1], size=41), lambda done: None)
    model, cache, nats = winnow.sparsify(fresh("llama"), plan_of(layers), threads=1), None, []
    with torch.no_grad():
        dense = fresh("llama")(torch.tensor([[1, *ids]])).logits[0].log_softmax(-1)
        for token, row in zip([1, *ids], dense, strict=True):
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            nats.append((row.exp() * (row - out.logits[0, -1].log_softmax(-1))).sum().item())
    assert sum(nats) / len(nats) == pytest.approx(measured.kld_mean, rel=1e-3)
