"""winnow chat: talk with a model, line by line.   (floor 8 · cli)"""

import argparse
import contextlib
import dataclasses
import datetime
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import final

from winnow.base.errors import ResourceError, UsageError, WinnowError
from winnow.base.files import replacing
from winnow.cli.failures import say
from winnow.cli.generate import request
from winnow.cli.inspect import show_plan
from winnow.cli.opening import open_checkpoint, open_engine
from winnow.cli.show import quantity, share
from winnow.engine.chat import Conversation, find_template
from winnow.engine.generate import Engine

BLOCK = '"""'


def run(arguments: argparse.Namespace) -> int:
    """Answer every message until the input ends; 0 then, and after /quit."""
    if sys.stdin is None:
        raise UsageError("standard input is closed; run it in a terminal, or pipe messages in.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the tokenizer names the place that is not UTF-8
    options = request(arguments)
    template = find_template(open_checkpoint(arguments).directory)
    plan = None if arguments.dense else arguments.plan or "auto"
    engine = open_engine(arguments, plan, constant_work=arguments.constant_work)
    conversation = Conversation(
        engine, template, options, system=arguments.system, began=datetime.datetime.now()
    )
    is_terminal = sys.stdin.isatty()
    if not arguments.quiet:
        if is_terminal:
            say(_greeting(engine))
        if template is None:
            say(
                "this model has no chat template: it continues your text, line by line, as a base model does."
            )
    return _Talk(conversation, is_terminal=is_terminal, is_quiet=arguments.quiet).run()


def _greeting(engine: Engine) -> str:
    config = engine.weights.config
    plan = "every neuron is computed" if engine.plan is None else "with its plan"
    return f"{config.n_layers} layers, {config.n_positions} positions, {plan}; /help lists the commands."


@final
class _Talk:
    """The loop: a message or a command in, an answer or a line out.

    Answers go to standard output, all else to standard error. In a terminal an error is a line and the
    conversation goes on; from a pipe it ends the run, since later answers would stand beside wrong lines.
    """

    def __init__(self, conversation: Conversation, *, is_terminal: bool, is_quiet: bool) -> None:
        self.conversation = conversation
        self.plan = conversation.engine.plan
        self.is_terminal = is_terminal
        self.is_quiet = is_quiet
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/help": ("this list", self._help),
            "/reset": ("forget what was said; the system text stays", self._reset),
            "/system": ("TEXT: what the model is told beforehand; alone: nothing", self._system),
            "/save": ("FILE: write the conversation as JSON, to a new file", self._save),
            "/stats": ("tokens, speed, density", self._stats),
            "/plan": ("which neurons the plan selects, layer by layer", self._plan),
            "/dense": ("compute every neuron; once more: as planned again", self._dense),
            "/quit": ("leave; so does the end of the input", self._quit),
        }
        self.is_over = False

    def run(self) -> int:
        """Go on until /quit or the end of the input; Ctrl-C at the prompt leaves at the second time."""
        was_interrupted = False
        while not self.is_over:
            try:
                message = _next_message(self.is_terminal)
            except KeyboardInterrupt:
                if was_interrupted or not self.is_terminal:
                    raise
                was_interrupted = True
                print(file=sys.stderr)
                say("Ctrl-C once more leaves, as /quit does; during an answer it stops the answer.")
                continue
            was_interrupted = False
            if message is None:
                break
            try:
                self._take(*message)
            except WinnowError as error:
                if not self.is_terminal:
                    raise
                say(str(error))
        return 0

    def _take(self, message: str, is_command: bool) -> None:
        name, _, rest = message.strip().partition(" ")
        if not name:
            return
        if not is_command:
            self._answer(message)
        elif name in self.commands:
            self.commands[name][1](rest.strip())
        else:
            raise UsageError(
                f"{name} is no command; see /help. Text that begins with / takes a space before it."
            )

    def _answer(self, message: str) -> None:
        reason = None
        try:
            with contextlib.closing(self.conversation.ask(message)) as pieces:
                for piece in pieces:
                    print(piece.text, end="", flush=True)
                    reason = piece.finish_reason
        except KeyboardInterrupt:
            if not self.is_terminal:
                raise
            print(flush=True)
            say("stopped; what was said stays in the conversation.")
            return
        print(flush=True)
        if self.is_quiet:
            return
        if self.conversation.is_full:
            n_positions = self.conversation.engine.weights.config.n_positions
            say(f"the answer ends here: the context of {n_positions} tokens is full. /reset begins anew.")
        elif reason == "length":
            say(f"cut after --max-tokens {self.conversation.options.max_tokens}.")

    def _help(self, rest: str) -> None:
        for name, (what, _) in self.commands.items():
            _tell(f"  {name:<8} {what}")
        _tell(f"  A line that ends in \\ goes on in the next; {BLOCK} begins and ends several lines.")

    def _quit(self, rest: str) -> None:
        self.is_over = True

    def _reset(self, rest: str) -> None:
        self.conversation.reset()

    def _system(self, rest: str) -> None:
        self.conversation.system = rest

    def _save(self, rest: str) -> None:
        if not rest:
            raise UsageError("/save needs the name of a file.")
        path = Path(rest).expanduser()
        if path.exists():
            raise UsageError(f"{path} exists already; choose another name.")
        messages = [dataclasses.asdict(each) for each in self.conversation.messages]
        try:
            with replacing(path) as draft:
                draft.write_text(json.dumps({"messages": messages}, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise ResourceError(f"{path} cannot be written ({error.strerror}); choose another.") from error
        _tell(f"{len(messages)} messages in {path}")

    def _stats(self, rest: str) -> None:
        talk, last = self.conversation, self.conversation.engine.last_stats
        n_held = 0 if talk.session.cache is None else talk.session.cache.length
        n_positions = talk.engine.weights.config.n_positions
        _tell(f"  {len(talk.turns) // 2} turns, {n_held} of {n_positions} positions in use")
        _tell(f"  {talk.n_read} prompt tokens read, {talk.n_answered} tokens answered")
        if last is not None:
            _tell(
                f"  last whole answer: {last.read_tokens} of {last.prompt_tokens} prompt tokens read, "
                f"first token after {last.ttft_s:.2f} s, {last.tokens_per_second:.1f} tokens/s, "
                f"density {share(last.mlp_density)}, {quantity(last.bytes_per_token)} read per token"
            )

    def _plan(self, rest: str) -> None:
        engine = self.conversation.engine
        if engine.plan is None:
            _tell(
                "every neuron is computed: " + ("there is no plan." if self.plan is None else "/dense is on.")
            )
        else:
            show_plan(engine.plan, engine.weights.config, on_stderr=True)

    def _dense(self, rest: str) -> None:
        if self.plan is None:
            raise UsageError("this model runs without a plan: every neuron is computed already.")
        was_dense = self.conversation.engine.plan is None
        self.conversation.use_plan(self.plan if was_dense else None)
        _tell(
            "as planned; the conversation is read anew."
            if was_dense
            else "dense; the conversation is read anew."
        )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _next_message(is_terminal: bool) -> tuple[str, bool] | None:
    """Return the next message without its marks, and whether it is a command; None at the end of the input.

    A line that ends in a backslash goes on in the next; triple quotes hold lines as they are.
    """
    first = _line(">>> ", is_terminal)
    if first is None:
        return None
    if first.startswith(BLOCK):
        return _block(first.removeprefix(BLOCK), is_terminal), False
    lines = [first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        more = _line("... ", is_terminal)
        if more is None:
            break
        lines.append(more)
    return "\n".join(lines), first.startswith("/")


def _block(first: str, is_terminal: bool) -> str:
    lines = [first] if first else []
    while not (lines and lines[-1].endswith(BLOCK)):
        more = _line("... ", is_terminal)
        if more is None:
            break
        lines.append(more)
    text = "\n".join(lines)
    return text.removesuffix(BLOCK).removesuffix("\n")


def _line(prompt: str, is_terminal: bool) -> str | None:
    """Return one line of standard input without its break, None at its end."""
    if is_terminal and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (importing it gives input() its keys and its history)
        try:
            return input(prompt)
        except EOFError:
            print(file=sys.stderr)
            return None
    if is_terminal:
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.removesuffix("\n").removesuffix("\r") if line else None
