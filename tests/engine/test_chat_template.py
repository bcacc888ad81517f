"""Chat templates: rendered as transformers renders them, and unable to do harm."""

import datetime
import json
import time

import pytest

from winnow.base.errors import ModelError, UsageError, WinnowError
from winnow.engine.chat import ChatTemplate, find_template
from winnow.engine.chat.sandbox import answer
from winnow.engine.chat.template import LARGEST_OUTPUT_BYTES, LARGEST_TEMPLATE_BYTES

NOW = datetime.datetime(2024, 2, 29, 13, 5, 9)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Is "<b>" a tag?\n  Say: ünïcode & more.'},
    {"role": "assistant", "content": "Yes.  "},
    {"role": "user", "content": "{{ 7 * 7 }} {% endfor %}"},
]
CHATML = """\
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' -}}
{% endif %}
"""
ZEPHYR = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% else %}{% generation %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endgeneration %}{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
LLAMA = """\
{{- bos_token }}
{%- set ns = namespace(seen=0) %}
{%- if tools is defined and tools %}{{ raise_exception('no tools') }}{% endif %}
{%- for message in messages if message.role != 'system' %}
  {%- set ns.seen = ns.seen + 1 %}
  {%- if message.content is none %}{% continue %}{% endif %}
  {{- '[' ~ ns.seen ~ '] ' ~ message | tojson ~ undefined_name ~ '\\n' }}
  {%- if ns.seen > 2 %}{% break %}{% endif %}
{%- endfor %}
{{- messages[0].content | trim | upper ~ (messages | length) ~ range(3) | list }}
"""


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, TOKENS, "the template")


@pytest.mark.parametrize("source", [CHATML, ZEPHYR, LLAMA], ids=["chatml", "zephyr", "llama"])
def test_text_is_that_of_transformers(source):
    from transformers.utils.chat_template_utils import render_jinja_template

    wanted, _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True, **TOKENS)
    assert template(source).render(MESSAGES, NOW) == wanted[0]


def test_the_clock_is_the_moment_that_was_passed():
    assert template("{{ strftime_now('%d %b %Y') }}").render(MESSAGES, NOW) == "29 Feb 2024"


def test_what_people_say_is_text_and_never_a_template():
    assert "{{ 7 * 7 }} {% endfor %}<|im_end|>" in template(CHATML).render(MESSAGES, NOW)


HOSTILE = {
    "an infinite loop": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
        "{% endfor %}{% endfor %}",
        "runs longer than 2 s",
    ),
    "a text of 1 GB": ("{{ 'x' * 10**9 }}", "more than 256 MiB of memory"),
    "a text that grows to 1 GB": (
        "{% set ns = namespace(t='x' * 4096) %}{% for i in range(30) %}"
        "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
        "more than 256 MiB of memory",
    ),
    "more text than a context can hold": (
        f"{{{{ 'x' * {LARGEST_OUTPUT_BYTES + 1} }}}}",
        "writes more than 16 MiB",
    ),
    "a way to Python's objects": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "a way through a function": ("{{ raise_exception.__globals__['sys'] }}", "unsafe"),
    "a way through format": ("{{ '{0.__class__.__base__}'.format(messages) }}", "unsafe"),
    "a change of the messages": ("{{ messages.append(1) }}", "not"),
    "an undefined variable": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "an undefined function": ("{{ open('x') }}", "'open' is undefined"),
    "a file": ("{% include 'x' %}", "no loader"),
    "a broken line": ("one\n{% for x in %}", "line 2"),
    "an unclosed block": ("{% if messages %}", "end of template"),
}


@pytest.mark.parametrize(("source", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_ends_in_one_line(source, says):
    started_s = time.monotonic()
    with pytest.raises(ModelError) as caught:
        template(source).render(MESSAGES, NOW)
    message = str(caught.value)
    assert message.startswith("the template cannot be rendered: ")
    assert says in message
    assert "\n" not in message
    assert time.monotonic() - started_s < 15  # 2 s of processor time, on a machine that others use


def test_the_child_can_open_nothing_even_where_the_sandbox_leaks():
    import subprocess
    import sys

    from winnow.engine.chat import sandbox

    code = (
        "import runpy, socket, os\n"
        f"runpy.run_path({sandbox.__file__!r})['confine']()\n"
        "for act in (lambda: open('/etc/hostname'), socket.socket, lambda: bytearray(2**29)):\n"
        "    try: act()\n"
        "    except (OSError, MemoryError) as error: print(type(error).__name__)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["OSError", "OSError", "MemoryError"], ran


def test_a_template_may_refuse_the_conversation():
    refusing = template("{{ raise_exception('roles must\nalternate') }}")
    with pytest.raises(UsageError, match=r"refuses this conversation: .*alternate"):
        refusing.render(MESSAGES, NOW)


def test_what_the_child_answers_is_bounded_text():
    refused = answer({"template": "{{ raise_exception('x' * 9999) }}", "values": {}, "now": NOW.isoformat()})
    assert {key: len(value) for key, value in refused.items()} == {"refused": 300}
    assert answer({"template": "a{{ b }}", "values": {"b": 3}, "now": NOW.isoformat()}) == {"text": "a3"}


def write(directory, settings=None, jinja=None):
    if settings is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if jinja is not None:
        (directory / "chat_template.jinja").write_bytes(jinja)
    return directory


def test_a_base_model_has_no_template(tmp_path):
    assert find_template(tmp_path) is None
    assert find_template(write(tmp_path, {"bos_token": "<s>"})) is None


def test_special_tokens_are_taken_as_text_or_object(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<unk>", "bos_token": "<x>"}))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    source = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}"
    found = find_template(write(tmp_path, {**settings, "chat_template": source}))
    assert found is not None
    assert found.render(MESSAGES, NOW) == "<s></s><unk>"


def test_a_file_of_its_own_comes_before_the_settings(tmp_path):
    found = find_template(write(tmp_path, {"chat_template": "old"}, jinja=b"new"))
    assert found is not None
    assert (found.source, found.where) == ("new", str(tmp_path / "chat_template.jinja"))


def test_of_several_templates_the_default_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    found = find_template(write(tmp_path, {"chat_template": named}))
    assert found is not None
    assert found.source == "d"
    with pytest.raises(ModelError, match=r"lists \['tool_use'\], expected one called default"):
        find_template(write(tmp_path, {"chat_template": named[:1]}))


@pytest.mark.parametrize(
    ("settings", "jinja", "says"),
    [
        ({"chat_template": 5}, None, "chat_template is 5, expected a text"),
        ({"chat_template": "x" * (LARGEST_TEMPLATE_BYTES + 1)}, None, "expected at most"),
        (None, b"x" * (LARGEST_TEMPLATE_BYTES + 1), "expected at most"),
        (None, b"\xff", "not UTF-8 at byte 0"),
        (None, b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git-LFS pointer"),
    ],
    ids=["a number", "long settings", "a long file", "no UTF-8", "a pointer"],
)
def test_a_broken_template_file_is_named(settings, jinja, says, tmp_path):
    with pytest.raises(WinnowError, match=says):
        find_template(write(tmp_path, settings, jinja))


def test_a_template_that_links_out_of_the_directory_is_refused(tmp_path):
    (tmp_path / "secret").write_text("x")
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leads out of the model directory"):
        find_template(inside)
