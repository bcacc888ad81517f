import pytest

from tests.cli.conftest import assert_one_line
from winnow.base.errors import UsageError
from winnow.cli.parser import COMMANDS, read_command_line


@pytest.mark.parametrize(
    "line",
    [
        "generate M P --max-tokens 5 --dense",
        "generate --max-tokens 5 M --dense P",
        "--max-tokens 5 --dense generate M P",
        "--dense generate --max-tokens=5 M P",
        "generate --dense M --max-tokens 5 -- P",
    ],
)
def test_options_may_stand_anywhere(line):
    arguments = read_command_line(line.split())
    found = (arguments.command, arguments.model, arguments.prompt, arguments.max_tokens, arguments.dense)
    assert found == ("generate", "M", "P", 5, True)


def test_model_may_be_left_out_everywhere():
    required = {"calibrate": ["--text", "t"], "fidelity": ["--text", "t"], "perplexity": ["--text", "t"]}
    for name, command in COMMANDS.items():
        if "[MODEL]" in command.words:
            words = ["a prompt"] if "PROMPT" in command.words else []
            assert read_command_line([name, *words, *required.get(name, [])]).model is None


def test_one_word_is_the_prompt_and_two_are_model_and_prompt():
    assert read_command_line(["generate", "bench"]).prompt == "bench"
    arguments = read_command_line(["generate", "bench", "fidelity"])
    assert (arguments.model, arguments.prompt) == ("bench", "fidelity")


@pytest.mark.parametrize("prompt", ["--dense", "-x", "--", "-"])
def test_prompt_may_begin_with_a_dash_after_two_dashes(prompt):
    arguments = read_command_line(["generate", "--max-tokens", "3", "--", prompt])
    assert (arguments.prompt, arguments.dense) == (prompt, False)


def test_stop_may_be_repeated_and_keeps_its_order():
    assert read_command_line(["generate", "x", "--stop", "b", "--stop", "a"]).stop == ["b", "a"]


def test_several_texts_are_read_in_order():
    arguments = read_command_line(["calibrate", "M", "--text", "a", "b", "--text", "c"])
    assert (arguments.model, [str(path) for path in arguments.text]) == ("M", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "no command given; expected one of generate, chat, calibrate"),
        ("--quiet", "no command given"),
        ("genrate x", "'genrate' is no command; expected one of generate, chat, calibrate"),
        ("genrate x", "Did you mean generate?"),
        ("zzz generate", "'zzz' is no command"),
        ("generate", "PROMPT is missing, expected [MODEL] PROMPT. See winnow generate --help"),
        ("generate a b c", "received 3 words, expected [MODEL] PROMPT; quote what holds spaces"),
        ("doctor now", "received 1 words, expected no words"),
        ("generate x --max-token 3", "unknown option --max-token, did you mean --max-tokens?"),
        ("generate x --max-token=3", "unknown option --max-token, did you mean --max-tokens?"),
        ("generate x --frobnicate", "unknown option --frobnicate. See winnow generate --help"),
        (
            "generate x --model m",
            "unknown option --model: MODEL is a word, expected [MODEL] PROMPT. See winnow generate",
        ),
        ("bench --model=m", "unknown option --model: MODEL is a word, expected [MODEL]"),
        ("generate x --max-tokens", "--max-tokens: expected one argument. See winnow generate --help"),
        ("generate x --max-tokens 2.5", "--max-tokens: '2.5' is no whole number"),
        ("generate x --max-tokens 0", "--max-tokens: 0 is too small, expected at least 1"),
        ("generate x --max-tokens -3", "--max-tokens: -3 is too small"),
        ("generate x --temperature warm", "--temperature: 'warm' is no number"),
        ("generate x --threads 0", "--threads: 0 is too small"),
        ("generate x --dtype fp8", "--dtype: invalid choice: 'fp8'"),
        ("calibrate --text t --dtype int8", "--dtype: invalid choice: 'int8'"),
        ("generate x --device tpu", "--device: invalid choice: 'tpu'"),
        ("generate x --dense --plan p", "--plan: not allowed with argument --dense"),
        ("calibrate", "--text"),
        ("bench --against vllm", "--against: 'vllm' is unknown, expected some of hf, llama.cpp, ctranslate2"),
        ("bench --against hf,", "--against: '' is unknown, expected some of hf, llama.cpp, ctranslate2"),
        ("train --corpus a --out b", "RECIPE is missing"),
    ],
)
def test_a_line_that_does_not_parse_ends_in_one_line(winnow, line, says):
    assert_one_line(winnow(*line.split()), 2, says)


def test_several_engines_are_separated_by_commas():
    line = ["bench", "--against", "ctranslate2, hf,llama.cpp:q8_0"]
    assert read_command_line(line).against == {"ctranslate2": "", "hf": "", "llama.cpp": "int8"}
    assert read_command_line(["bench"]).against == {}


def test_errors_of_the_parser_are_raised_not_printed():
    with pytest.raises(UsageError, match="no command"):
        read_command_line([])
