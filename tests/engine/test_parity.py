"""The dense definition against transformers, on tiny random checkpoints of every family and variant."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.engine.tiny import VARIANTS, VOCAB_SIZE, Variant, save, tiny_model
from winnow.base.rng import generator
from winnow.engine import Checkpoint, KvCache, forward, load_weights
from winnow.engine.model import prefill
from winnow.engine.weights import Weights

FP32_BOUND = 2e-5
# bfloat16 keeps 8 bits, and weights this large amplify what three layers round away: transformers' own
# bfloat16 is up to 0.10 from its float32 on these models.
BF16_BOUND = 0.08
N_GREEDY = 64
BY_NAME = {variant.name: variant for variant in VARIANTS}


@dataclass(frozen=True)
class Case:
    variant: Variant
    directory: Path
    theirs: PreTrainedModel
    ours: Weights


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = tiny_model(request.param, generator(7))
    directory = save(model, tmp_path_factory.mktemp(request.param.name))
    return Case(request.param, directory, model, load(directory))


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return load_weights(Checkpoint.open(directory), dtype)


def random_ids(count: int, seed: int) -> Tensor:
    return torch.randint(VOCAB_SIZE, (count,), generator=generator(seed))


def our_logits(weights: Weights, ids: Tensor) -> Tensor:
    return forward(weights, ids, KvCache(weights.config, len(ids), weights.embed.dtype))


def their_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(ids[None], use_cache=False).logits[0].float()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def our_greedy(weights: Weights, prompt: Tensor) -> list[int]:
    cache = KvCache(weights.config, len(prompt) + N_GREEDY, weights.embed.dtype)
    tokens = [int(prefill(weights, prompt, cache).argmax())]
    while len(tokens) < N_GREEDY:
        tokens.append(int(forward(weights, torch.tensor(tokens[-1:]), cache)[0].argmax()))
    return tokens


def their_greedy(model: PreTrainedModel, prompt: Tensor) -> list[int]:
    step, tokens = model(prompt[None], use_cache=True), []
    while True:
        tokens.append(int(step.logits[0, -1].argmax()))
        if len(tokens) == N_GREEDY:
            return tokens
        last = torch.tensor([tokens[-1:]])
        step = model(last, past_key_values=step.past_key_values, use_cache=True)


@pytest.mark.parametrize("n_tokens", [1, 13, 200])
def test_fp32_logits_equal_those_of_transformers(case: Case, n_tokens: int) -> None:
    ids = random_ids(n_tokens, seed=n_tokens)
    assert relative(our_logits(case.ours, ids), their_logits(case.theirs, ids)) <= FP32_BOUND


@pytest.mark.parametrize("n_prompt", [5, 200])
def test_64_greedy_tokens_are_those_of_transformers(case: Case, n_prompt: int) -> None:
    prompt = random_ids(n_prompt, seed=n_prompt)
    assert our_greedy(case.ours, prompt) == their_greedy(case.theirs, prompt)


def test_token_by_token_gives_the_logits_of_transformers_in_one_piece(case: Case) -> None:
    ids = random_ids(40, seed=2)
    cache = KvCache(case.ours.config, len(ids), torch.float32)
    ours = torch.cat([forward(case.ours, ids[index : index + 1], cache) for index in range(len(ids))])
    assert relative(ours, their_logits(case.theirs, ids)) <= FP32_BOUND


def test_bf16_logits_stay_near_fp32(case: Case) -> None:
    ids = random_ids(50, seed=3)
    ours = our_logits(load(case.directory, torch.bfloat16), ids)
    assert relative(ours, their_logits(case.theirs, ids)) <= BF16_BOUND


def test_attention_is_far_from_uniform(case: Case) -> None:
    # Without this, a wrong rotation would hide behind an average over all keys.
    ids = random_ids(40, seed=5)
    swapped = ids.clone()
    swapped[[36, 37]] = ids[[37, 36]]
    assert relative(our_logits(case.ours, swapped)[-1:], our_logits(case.ours, ids)[-1:]) > 100 * FP32_BOUND


@pytest.mark.parametrize("name", ["opt-350m", "llama-grouped", "qwen3"])
def test_shards_load_as_one_file_does(name: str, tmp_path: Path) -> None:
    model = tiny_model(BY_NAME[name], generator(11))
    save(model, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ids = random_ids(30, seed=1)
    assert relative(our_logits(load(tmp_path), ids), their_logits(model, ids)) <= FP32_BOUND


ROPE_KEYS = ("rope_theta", "rope_type")


def spell_as_v4(raw: dict) -> dict:
    """Return a config of transformers 5 with the keys that transformers 4 wrote."""
    raw = dict(raw)
    raw["torch_dtype"] = raw.pop("dtype")
    raw.pop("layer_types", None)
    rope = raw.pop("rope_parameters", None)
    if rope is not None:
        raw["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key not in ROPE_KEYS}
        kind = rope["rope_type"]
        # Older files say `type`, newer ones of that generation `rope_type`.
        raw["rope_scaling"] = (
            None if kind == "default" else {"type" if kind == "linear" else "rope_type": kind, **scaling}
        )
    return raw


def test_the_config_of_transformers_4_gives_the_same_logits(case: Case, tmp_path: Path) -> None:
    shutil.copytree(case.directory, tmp_path, dirs_exist_ok=True)
    raw = json.loads((case.directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(spell_as_v4(raw)))
    ids = random_ids(20, seed=4)
    assert torch.equal(our_logits(load(tmp_path), ids), our_logits(case.ours, ids))


@pytest.mark.parametrize("name", ["opt", "opt-350m", "llama-tied", "qwen2"])
def test_a_checkpoint_without_its_head_class_loads_under_shorter_names(name: str, tmp_path: Path) -> None:
    model = tiny_model(BY_NAME[name], generator(13))
    save(model.base_model, tmp_path)
    assert not any(key.startswith("model.") for key in Checkpoint.open(tmp_path).names())
    ids = random_ids(20, seed=6)
    assert relative(our_logits(load(tmp_path), ids), their_logits(model, ids)) <= FP32_BOUND


@pytest.mark.parametrize("name", ["opt", "opt-350m", "llama-tied"])
def test_a_tied_head_may_be_stored_again(name: str, tmp_path: Path) -> None:
    model = tiny_model(BY_NAME[name], generator(17))
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embed = next(key for key in tensors if key.endswith("embed_tokens.weight"))
    save_file({**tensors, "lm_head.weight": tensors[embed].clone()}, tmp_path / "model.safetensors")
    weights = load(tmp_path)
    assert weights.head.matrix.weight.data_ptr() == weights.embed.weight.data_ptr()
    ids = random_ids(20, seed=8)
    assert relative(our_logits(weights, ids), their_logits(model, ids)) <= FP32_BOUND
