"""winnow chat: what a pipe sees, what a terminal sees, and Ctrl-C."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.cli import checkpoint
from tests.cli.conftest import PROCESS, assert_one_line
from winnow.engine.generate import load

LINE = ("chat", "--max-tokens", 6, "--temperature", 0)
TEMPLATE = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}<s>assistant "


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A tiny checkpoint with a chat template."""
    directory = checkpoint.write(tmp_path_factory.mktemp("chat") / "chatty", seed=7)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture
def talk(winnow, monkeypatch):
    """Run one conversation, its lines piped in."""

    def run(model, lines, *options):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return winnow(*LINE, model, *options)

    return run


def reply(model, prompt, n_tokens=6) -> str:
    engine = load(model, threads=1, plan=None)
    ids = engine.tokenizer.encode(prompt, special=not prompt.startswith("<s>"))
    return engine.generate(ids, max_tokens=n_tokens).text


def test_a_pipe_gets_replies_only_one_per_line_read(talk, chatty):
    ran = talk(chatty, "the wind\n\n   \n", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == reply(chatty, "<s>user the wind</s><s>assistant ") + "\n"


def test_constant_work_says_the_same(talk, planned):
    plain, constant = (talk(planned, "the wind\n", "--quiet", *more) for more in ((), ("--constant-work",)))
    assert (constant.code, constant.out) == (0, plain.out)


def test_the_conversation_goes_on_where_it_was(talk, chatty):
    first = reply(chatty, "<s>user the wind</s><s>assistant ")
    second = f"<s>user the wind</s><s>assistant {first}</s><s>user light</s><s>assistant "
    ran = talk(chatty, "the wind\nlight\n", "--quiet")
    assert ran.out == f"{first}\n{reply(chatty, second)}\n"


def test_a_base_model_continues_and_says_so_once(talk, model):
    ran = talk(model, "the wind\n takes\n")
    assert ran.out.startswith(reply(model, "the wind") + "\n")
    assert ran.err.count("no chat template: it continues your text") == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("the wind\\\ntakes\\\nlight\n", "the wind\ntakes\nlight"),
        ('"""the wind\n  takes \\\n\nlight"""\n', "the wind\n  takes \\\n\nlight"),
        ('"""\nthe wind\n"""\n', "the wind"),
        ('"""/reset\n"""\n', "/reset"),
        (" /reset\n", " /reset"),
        ('"""the wind"""\n', "the wind"),
        ("the wind\\", "the wind"),
        ('"""the wind\ntakes', "the wind\ntakes"),
        ("the wind\r\n", "the wind"),
    ],
)
def test_lines_are_joined_and_blocks_kept(talk, chatty, tmp_path, lines, message):
    end = "\n" if lines.endswith("\n") else ""
    saved = tmp_path / "saved.json"
    ran = talk(chatty, f"{lines}{f'/save {saved}' if end else ''}\n" if end else lines, "--quiet")
    assert ran.out == reply(chatty, f"<s>user {message}</s><s>assistant ") + "\n"
    if end:
        assert json.loads(saved.read_text())["messages"][0] == {"role": "user", "content": message}


def test_commands_are_answered_on_stderr(talk, planned):
    ran = talk(planned, "/help\n/plan\n/stats\nthe wind\n/stats\n/quit\nnever read\n", "--quiet")
    assert ran.out.count("\n") == 1 + reply(planned, "the wind").count("\n")
    commands = ("/help", "/reset", "/system", "/save", "/stats", "/plan", "/dense", "/quit")
    assert all(f"  {name} " in ran.err for name in commands)
    assert "│ 0     │" in ran.err
    assert "0 turns, 0 of 160 positions" in ran.err
    assert "1 turns, " in ran.err
    assert "6 tokens answered" in ran.err


def test_dense_is_switched_on_and_off(talk, planned, model):
    ran = talk(planned, "/dense\nthe wind\n/stats\n/plan\n/dense\n/plan\nthe wind\n/stats\n", "--quiet")
    assert ran.out.startswith(reply(model, "the wind") + "\n")
    assert "density 100.0 %" in ran.err
    assert "/dense is on" in ran.err
    density = ran.err.rsplit("density ", 1)[1].split(" ")[0]
    assert float(density) < 100
    assert_one_line(talk(model, "/dense\n", "--quiet"), 2, "runs without a plan")


def test_system_text_and_reset(talk, chatty):
    ran = talk(chatty, "/system grain\nthe wind\n/reset\nthe wind\n/system\n/reset\nthe wind\n", "--quiet")
    with_system = reply(chatty, "<s>system grain</s><s>user the wind</s><s>assistant ")
    without = reply(chatty, "<s>user the wind</s><s>assistant ")
    assert with_system != without
    assert ran.out == f"{with_system}\n{with_system}\n{without}\n"
    assert talk(chatty, "the wind\n", "--quiet", "--system", "grain").out == f"{with_system}\n"


def test_a_conversation_is_saved_to_a_new_file_only(talk, chatty, tmp_path):
    path = tmp_path / "talk.json"
    talk(chatty, f"the wind\n/save {path}\n", "--quiet")
    roles = [message["role"] for message in json.loads(path.read_text())["messages"]]
    assert roles == ["user", "assistant"]
    before = path.read_bytes()
    assert_one_line(talk(chatty, f"/save {path}\n", "--quiet"), 2, "exists already")
    assert path.read_bytes() == before
    assert_one_line(talk(chatty, "/save\n", "--quiet"), 2, "needs the name of a file")
    assert_one_line(talk(chatty, "/save /dev/null/x\n", "--quiet"), 4, "cannot be written")


def test_a_full_context_is_said_in_one_line(talk, model):
    long = " grain" * 30
    ran = talk(model, f"{long}\n", "--max-tokens", 99, "--logit-bias", "2=-100")
    assert ran.err.count("the context of 160 tokens is full") == 1
    assert "/reset begins anew" in ran.err
    refused = talk(model, f"{long * 2}\n", "--quiet")
    assert_one_line(refused, 2, "the model has 160 positions")


def test_what_cuts_an_answer_is_said(talk, model):
    assert "cut after --max-tokens 6." in talk(model, "the wind\n").err


@pytest.mark.parametrize(
    ("lines", "code", "says"),
    [
        ("/nonsense\n", 2, "/nonsense is no command; see /help"),
        ("\udcff\n", 2, "has no UTF-8"),
    ],
)
def test_a_pipe_ends_with_the_first_refusal(talk, model, lines, code, says):
    assert_one_line(talk(model, lines + "the wind\n", "--quiet"), code, says)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than 2 s"),
        ("{{ 'x' * 10**9 }}", "256 MiB"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
    ids=["endless", "1 GB", "escape", "undefined"],
)
def test_a_hostile_template_is_one_line(talk, tmp_path, template, says):
    directory = checkpoint.write(tmp_path / "hostile")
    (directory / "chat_template.jinja").write_text(template)
    assert_one_line(talk(directory, "the wind\n", "--quiet"), 3, "chat_template.jinja", says)


def test_bytes_that_are_no_utf_8_are_refused_by_a_real_pipe(process, model):
    assert_one_line(process(*LINE, model, "--quiet", stdin=b"caf\xe9\n"), 2, "has no UTF-8")


# So that its Ctrl-C reaches this process and no other.
OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "


class Terminal:
    """A `winnow chat` in a terminal of its own."""

    def __init__(self, *argv: object) -> None:
        self.screen, far = pty.openpty()
        command = [sys.executable, "-c", OWN_TERMINAL + PROCESS, *map(str, argv)]
        self.process = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, start_new_session=True)
        os.close(far)
        self.seen = ""

    def until(self, text: str) -> str:
        """Read the screen until `text` is on it; return what came since the last time."""
        deadline = time.monotonic() + 90
        while text not in self.seen:
            wait_s = deadline - time.monotonic()
            assert wait_s > 0 and select.select([self.screen], [], [], wait_s)[0], self.seen
            try:
                self.seen += os.read(self.screen, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                assert text in self.seen, self.seen
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def interrupt(self, text: str) -> str:
        """Press Ctrl-C, again every 5 s, until `text` is on the screen.

        The prompt stands before readline listens: a signal between the two waits for the next key.
        """
        for _ in range(10):
            self.type("\x03")
            deadline = time.monotonic() + 5
            while text not in self.seen and (wait_s := deadline - time.monotonic()) > 0:
                if select.select([self.screen], [], [], wait_s)[0]:
                    try:
                        self.seen += os.read(self.screen, 4096).decode(errors="replace")
                    except OSError:  # the other end is closed
                        break
            if text in self.seen:
                break
        return self.until(text)

    def close(self) -> int:
        with contextlib.suppress(OSError):
            while os.read(self.screen, 4096):
                pass
        os.close(self.screen)
        return self.process.wait(timeout=60)


def test_in_a_terminal_ctrl_c_stops_the_reply_and_twice_at_the_prompt_leaves(pico):
    terminal = Terminal("chat", pico, "--max-tokens", 1900, "--logit-bias", "2=-100")
    terminal.until("/help lists the commands")
    terminal.until(">>> ")
    terminal.type("Once upon a time there\n")
    terminal.until("there\r\n")
    while not terminal.seen.strip():  # the first words of the reply
        terminal.seen += os.read(terminal.screen, 100).decode(errors="replace")
    terminal.type("\x03")
    terminal.until("stopped; what was said stays")
    terminal.until(">>> ")
    terminal.type("/nonsense\n")
    terminal.until("is no command")
    terminal.until(">>> ")
    terminal.type("/stats\n")
    terminal.until("1 turns")
    terminal.until(">>> ")
    terminal.interrupt("Ctrl-C once more leaves")
    terminal.until(">>> ")
    terminal.interrupt("winnow: interrupted")
    assert terminal.close() == 130


def test_in_a_terminal_the_end_of_the_input_leaves(model):
    terminal = Terminal("chat", model, "--max-tokens", 3)
    terminal.until(">>> ")
    terminal.type("the wind\\\ntakes\n")
    terminal.until("... ")
    terminal.until(">>> ")
    terminal.type("\x04")
    assert terminal.close() == 0


def test_an_interrupted_pipe_ends_in_one_line(model):
    command = [sys.executable, "-c", PROCESS, *map(str, LINE), str(model)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()  # that there is no template: it waits for a line now
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()  # or leaving the block would wait for it
            raise
    assert (process.returncode, out, err) == (130, b"", b"winnow: interrupted\n")
