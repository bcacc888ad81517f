"""Conversations: what is read of every turn, and that the answers are those of a fresh run."""

import datetime

import pytest
import torch

from tests.cli.checkpoint import N_POSITIONS, write
from winnow.base.errors import ModelError, UsageError
from winnow.engine import GenerateOptions, KvCache, SamplingOptions, load
from winnow.engine.chat import ChatTemplate, Conversation, Message
from winnow.engine.context import Session
from winnow.engine.generate import Engine
from winnow.engine.prefill import Prefill
from winnow.engine.sparsity import LowRankPredictor, Plan
from winnow.engine.sparsity.plan import Provenance
from winnow.kernels import Matrix

NOW = datetime.datetime(2024, 2, 29)
TEMPLATE = ChatTemplate(
    "{{ bos }}{% for m in messages %}"
    "{% if m.content == 'refuse' %}{{ raise_exception('not this') }}{% endif %}"
    "{{ '<s>' ~ m.role ~ ' ' ~ m.content ~ '</s>' }}{% endfor %}<s>assistant ",
    {"bos": "</s>"},
    "the template",
)
SAID = ["the wind takes", "light chaff and", "keeps"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    return load(write(tmp_path_factory.mktemp("chat") / "model", seed=4), dtype="fp32", threads=1)


def every_second_neuron(engine) -> Plan:
    """A plan that selects half of the neurons, whatever is said."""
    config = engine.weights.config
    down, up = Matrix(torch.zeros(1, config.width)), Matrix(torch.zeros(config.n_neurons, 1))
    bias = torch.tensor([1.0, -1.0]).repeat(config.n_neurons // 2)
    provenance = Provenance("a" * 64, "b" * 64, "same-layer", "svd", 0.1, 0.1, 0.5, 0.5, 99)
    return Plan(provenance, (LowRankPredictor(down, up, bias),) * config.n_layers)


def talk(engine, template=TEMPLATE, max_tokens=9, system="", **sampling) -> Conversation:
    options = GenerateOptions(max_tokens, SamplingOptions(**sampling))
    return Conversation(engine, template, options, system=system, began=NOW)


def said(conversation: Conversation, text: str) -> list[int]:
    return [piece.token_id for piece in conversation.ask(text)]


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "plain"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_turn_answers_as_a_fresh_run_of_the_whole_conversation(engine, template, temperature):
    conversation = talk(engine, template, system="a field", temperature=temperature, seed=5)
    for turn, text in enumerate(SAID):
        whole = [*conversation.messages, Message("user", text)]
        answer = said(conversation, text)
        ids = conversation._encoded(whole)
        fresh = engine.generate(ids, max_tokens=9, temperature=temperature, seed=5 + turn)
        assert answer == fresh.token_ids
        assert conversation.messages[-1] == Message("assistant", fresh.text)


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "plain"])
def test_only_what_is_new_is_read(engine, template):
    conversation = talk(engine, template, temperature=0.0)
    read = []
    for text in SAID:
        held = conversation.session.tokens[: conversation.session.cache.length] if read else []
        ids = conversation._encoded([*conversation.messages, Message("user", text)])
        alike = 0
        while alike < min(len(held), len(ids)) and held[alike] == ids[alike]:
            alike += 1
        n_before = engine.weights.config.n_positions - len(ids)
        assert n_before > 0
        said(conversation, text)
        assert conversation.session.n_read == len(ids) - alike
        assert engine.last_stats.read_tokens == len(ids) - alike
        assert engine.last_stats.prompt_tokens == len(ids)
        read.append(len(ids) - alike)
    assert conversation.n_read == sum(read)
    assert read[-1] < len(ids) / 2


def test_the_prompt_is_computed_for_the_new_tokens_only(engine, monkeypatch):
    computed = []
    read = Prefill.read

    def counting(prefill, ids, cache):
        computed.append(len(ids))
        return read(prefill, ids, cache)

    monkeypatch.setattr(Prefill, "read", counting)
    conversation = talk(engine)
    for text in SAID:
        said(conversation, text)
        assert computed[-1] == conversation.session.n_read
    assert sum(computed) == conversation.n_read < len(conversation.session.tokens)


def test_a_template_says_itself_what_belongs_around_its_text(engine):
    ids = talk(engine)._encoded([Message("user", "the wind")])
    assert ids[:3] == [2, 0, engine.tokenizer.encode("user", special=False)[0]]  # </s> once, then <s>
    assert talk(engine, None)._encoded([Message("user", "the wind")])[0] == 2
    assert ids.count(2) == 2


def test_plain_text_is_continued_line_by_line(engine):
    conversation = talk(engine, None, system="a field")
    said(conversation, SAID[0])
    answer = conversation.turns[1].content
    ids = conversation._encoded([*conversation.messages, Message("user", SAID[1])])
    assert engine.tokenizer.decode(ids) == f"a field\n{SAID[0]}{answer}\n{SAID[1]}"


@pytest.mark.parametrize("n_pieces", [1, 4])
def test_an_answer_that_is_stopped_stays_as_far_as_it_was_said(engine, n_pieces):
    conversation = talk(engine, max_tokens=30)
    answer = conversation.ask(SAID[0])
    shown = "".join(next(answer).text for _ in range(n_pieces))
    answer.close()
    assert conversation.turns == [Message("user", SAID[0]), Message("assistant", shown)]
    whole = [*conversation.messages, Message("user", SAID[1])]
    fresh = engine.generate(conversation._encoded(whole), max_tokens=30, seed=1)
    assert said(conversation, SAID[1]) == fresh.token_ids


def test_a_prompt_that_is_interrupted_leaves_the_conversation_as_it_was(engine, monkeypatch):
    conversation = talk(engine)
    said(conversation, SAID[0])
    turns = list(conversation.turns)
    read = Prefill.read

    def interrupted(prefill, ids, cache):
        read(prefill, ids[:2], cache)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Prefill, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            said(conversation, SAID[1])
    assert conversation.turns == turns
    fresh = engine.generate(conversation._encoded([*turns, Message("user", SAID[2])]), max_tokens=9, seed=1)
    assert said(conversation, SAID[2]) == fresh.token_ids


def test_a_refused_message_is_taken_back(engine):
    conversation = talk(engine)
    said(conversation, SAID[0])
    turns = list(conversation.turns)
    with pytest.raises(UsageError, match="not this"):
        conversation.ask("refuse")
    broken = talk(engine, ChatTemplate("{{ a.b }}", {}, "it"))
    with pytest.raises(ModelError, match="undefined"):
        broken.ask("anything")
    assert (conversation.turns, broken.turns) == (turns, [])
    assert len(said(conversation, SAID[1])) == 9


def test_an_answer_ends_where_the_context_does_and_says_so(engine):
    conversation = talk(engine, None, max_tokens=50)
    conversation.options = GenerateOptions(50, SamplingOptions(), ignore_eos=True)
    text = " grain" * 25
    room = N_POSITIONS - len(conversation._encoded([Message("user", text)]))
    assert 0 < room < 50
    assert len(said(conversation, text)) == room
    assert conversation.is_full
    turns = list(conversation.turns)
    with pytest.raises(UsageError, match=f"tokens, the model has {N_POSITIONS} positions.*/reset"):
        conversation.ask("and")
    assert conversation.turns == turns
    conversation.reset()
    assert len(said(conversation, "and")) == 50
    assert not conversation.is_full


def test_a_new_system_text_is_read_and_a_reset_keeps_it(engine):
    conversation = talk(engine, system="a field")
    said(conversation, SAID[0])
    conversation.system = "grain"
    assert said(conversation, SAID[1]) != []
    assert conversation.session.n_read > len(engine.tokenizer.encode(SAID[1])) + 5
    conversation.reset()
    assert conversation.messages == [Message("system", "grain")]


def test_without_its_plan_a_conversation_goes_on_as_a_dense_one(engine):
    plan = every_second_neuron(engine)
    sparse = Engine(engine.weights, engine.tokenizer, plan, 1)
    conversation = talk(sparse)
    said(conversation, SAID[0])
    assert sparse.last_stats.mlp_density == 0.5
    conversation.use_plan(None)
    whole = [*conversation.messages, Message("user", SAID[1])]
    dense = engine.generate(conversation._encoded(whole), max_tokens=9, seed=1)
    assert said(conversation, SAID[1]) == dense.token_ids
    assert sparse.last_stats.mlp_density == 1
    conversation.use_plan(plan)
    said(conversation, SAID[2])
    assert sparse.last_stats.mlp_density == 0.5


def test_a_session_reads_the_last_token_even_of_a_prompt_it_holds(engine):
    session = Session(engine.weights)
    options = GenerateOptions(5)
    once, again = ([p.token_id for p in engine.run(SAID[0], options, session)] for _ in range(2))
    assert session.n_read == 1
    assert once == again


def test_a_cache_that_grows_keeps_what_it_holds(engine):
    cache = KvCache(engine.weights.config, 3, torch.float32)
    cache.length = 2
    for block in cache.blocks:
        block.keys[:, :2], block.values[:, :2] = 1.5, -2.5
    cache.grow(11)
    assert (cache.capacity, cache.length) == (11, 2)
    assert all(block.capacity == 11 for block in cache.blocks)
    assert all(bool((b.keys[:, :2] == 1.5).all() and (b.values[:, :2] == -2.5).all()) for b in cache.blocks)
    for capacity in (1, N_POSITIONS + 1):
        with pytest.raises(UsageError):
            cache.grow(capacity)
    assert cache.capacity == 11
