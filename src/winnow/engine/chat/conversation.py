"""Conversation: turns that share one cache, so that only what is new is read.   (floor 5 · engine)"""

import dataclasses
import datetime
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import final

from winnow.base.errors import UsageError
from winnow.base.rng import SEED_LIMIT
from winnow.engine.chat.template import ChatTemplate
from winnow.engine.context import Session
from winnow.engine.generate import Engine, GenerateOptions, Piece
from winnow.engine.sparsity import Plan


@dataclass(frozen=True)
class Message:
    """What one side said; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@final
class Conversation:
    """A system text, what was said so far, and the cache that holds it.

    Every turn's prompt is the whole conversation, rendered and encoded anew; of its tokens, those that the
    cache holds from the first on are not read again. The answers are those of a fresh run of the whole
    conversation, to rounding; with a plan they differ from it by what the plan loses, since earlier answers
    stand in the cache as they were decoded. Turn n, from 0, draws with seed + n.

    Without a template the model continues plain text: the system text, then each message with its answer
    right behind it, every one on a line of its own.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate | None,
        options: GenerateOptions,
        *,
        system: str = "",
        began: datetime.datetime,
    ) -> None:
        """Begin with nothing said; `began` is the moment that the template learns, the same in every turn."""
        self.engine = engine
        self.template = template
        self.options = options
        self.system = system
        self.began = began
        self.turns: list[Message] = []
        self.session = Session(engine.weights)
        self.n_read = 0  # prompt tokens that had to be read, over all turns
        self.n_answered = 0
        self.is_full = False  # the last answer ended where the model's positions do

    @property
    def messages(self) -> list[Message]:
        """Everything said, the system text first if there is one."""
        return [*([Message("system", self.system)] if self.system else []), *self.turns]

    def ask(self, text: str) -> Generator[Piece, None, None]:
        """Say `text` and yield the answer piece by piece; where the context ends, it ends too.

        An answer that is stopped (the iterator closed) stays as far as it was given out; stopped before its
        first text, `text` is taken back too. Raises UsageError, before anything is read and with the
        conversation as it was, when the template refuses it or no position is left to answer in.
        """
        said = Message("user", text)
        ids = self._encoded([*self.messages, said])
        n_positions = self.engine.weights.config.n_positions
        room = n_positions - len(ids)
        if room < 1:
            raise UsageError(
                f"The conversation with this message has {len(ids)} tokens, the model has {n_positions} "
                "positions; shorten the message, or begin anew with /reset."
            )
        sampling = self.options.sampling
        seed = (sampling.seed + len(self.turns) // 2) % SEED_LIMIT
        options = dataclasses.replace(
            self.options,
            max_tokens=min(self.options.max_tokens, room),
            sampling=dataclasses.replace(sampling, seed=seed),
        )
        return self._answer(said, ids, options)

    def reset(self) -> None:
        """Forget what was said; the system text stays."""
        self.turns, self.session = [], Session(self.engine.weights)

    def use_plan(self, plan: Plan | None) -> None:
        """Compute what follows with `plan`, None for every neuron; the conversation so far is read anew."""
        self.engine.use_plan(plan)
        self.session = Session(self.engine.weights)

    def _encoded(self, messages: Sequence[Message]) -> list[int]:
        tokenizer = self.engine.tokenizer
        if self.template is None:
            return tokenizer.encode(_plain(messages))
        text = self.template.render([dataclasses.asdict(each) for each in messages], self.began)
        return tokenizer.encode(text, special=False)  # the template has written what belongs around it

    def _answer(
        self, said: Message, ids: list[int], options: GenerateOptions
    ) -> Generator[Piece, None, None]:
        self.is_full = False
        text, is_done = "", False
        try:
            for piece in self.engine.run(ids, options, self.session):
                text += piece.text
                self.n_answered += 1
                is_done = piece.finish_reason is not None
                self.is_full = (
                    piece.finish_reason == "length" and options.max_tokens < self.options.max_tokens
                )
                yield piece
        finally:
            self.n_read += self.session.n_read
            if text or is_done:
                self.turns += [said, Message("assistant", text)]


def _plain(messages: Sequence[Message]) -> str:
    """Return the text that a model without a template continues."""
    return "".join(each.content if each.role == "user" else f"{each.content}\n" for each in messages)
