"""Template: a model's chat template, found, rendered in a child process, bounded.   (floor 5 · engine)"""

import datetime
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from winnow.base.errors import ModelError, ResourceError, UsageError
from winnow.engine.chat import sandbox
from winnow.engine.checkpoint import contained
from winnow.engine.config import brief, read_json, refuse_lfs_pointer

TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
LARGEST_TEMPLATE_BYTES = 2**20
LARGEST_OUTPUT_BYTES = 16 * 2**20
# Beyond the child's own limit on processor time, which a sleeping child or a crowded machine never reaches.
PATIENCE_S = 20.0


@final
@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and the special tokens it may name; `where` is its file, for messages.

    Rendered text equals that of transformers' ``apply_chat_template``. The text holds all special tokens that
    belong to it: encode it without adding any, or the first token stands there twice.
    """

    source: str
    tokens: Mapping[str, str]
    where: str

    def render(self, messages: Sequence[Mapping[str, str]], now: datetime.datetime) -> str:
        """Return the text of `messages`, up to where the assistant begins to answer.

        `now` is what the template learns of the clock: pass the same moment for all turns of a conversation,
        or its beginning changes. Starts a Python process, about 0.1 s, which may use 256 MiB and 2 s of
        processor time and can open nothing. Raises UsageError when the template refuses the conversation,
        ModelError when it is broken or goes beyond its limits.
        """
        values = {"messages": list(messages), "add_generation_prompt": True, **self.tokens}
        request = {"template": self.source, "values": values, "now": now.isoformat()}
        answer = _asked(json.dumps(request).encode(), self.where)
        if "refused" in answer:
            raise UsageError(
                f"The model's chat template refuses this conversation: {brief(answer['refused'], 200)} "
                "Change the message or the system text."
            )
        text = answer.get("text")
        if not isinstance(text, str):
            raise _broken(self.where, str(answer.get("broken", "it gave no text")))
        return text


def find_template(directory: Path) -> ChatTemplate | None:
    """Return the chat template of a model directory; None for a base model, which has none.

    Looked for in chat_template.jinja, then in tokenizer_config.json, where a list of named templates must
    hold one called default. Raises ModelError for a file that is broken or too large.
    """
    settings = _optional(directory, SETTINGS_FILE)
    tokens = {**dict.fromkeys(ROLES, ""), **_spelled(_optional(directory, TOKENS_FILE)), **_spelled(settings)}
    path = directory / TEMPLATE_FILE
    if path.exists() or path.is_symlink():
        return ChatTemplate(_read(contained(directory, TEMPLATE_FILE)), tokens, str(path))
    where = f"{directory / SETTINGS_FILE}: chat_template"
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = _named_default(found, where)
    if found is None:
        return None
    if not isinstance(found, str):
        raise ModelError(f"{where} is {brief(found)}, expected a text. Download the model again.")
    if len(found) > LARGEST_TEMPLATE_BYTES:
        raise ModelError(
            f"{where} has {len(found)} characters, expected at most {LARGEST_TEMPLATE_BYTES}. Shorten it."
        )
    return ChatTemplate(found, tokens, where)


def _named_default(entries: list[Any], where: str) -> object:
    named = {e.get("name"): e.get("template") for e in entries if isinstance(e, dict)}
    if "default" not in named:
        raise ModelError(
            f"{where} lists {brief(sorted(map(str, named)))}, expected one called default. "
            f"Put the one you want into {TEMPLATE_FILE}."
        )
    return named["default"]


def _optional(directory: Path, name: str) -> dict[str, Any]:
    return read_json(contained(directory, name)) if (directory / name).exists() else {}


def _spelled(table: Mapping[str, Any]) -> dict[str, str]:
    """Return how the special tokens of `table` are spelled, each a text or an object with its content."""
    values = {role: table.get(role) for role in ROLES}
    texts = {role: v.get("content") if isinstance(v, dict) else v for role, v in values.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_TEMPLATE_BYTES:
            raise ModelError(
                f"{path} has {path.stat().st_size} bytes, expected at most {LARGEST_TEMPLATE_BYTES}. "
                "Shorten it."
            )
        content = path.read_bytes()
        refuse_lfs_pointer(path, content)
        return content.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 at byte {error.start}. Download it again.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}). Download it again.") from None


def _asked(request: bytes, where: str) -> dict[str, Any]:
    """Return the object that the child answers; whatever else happens is the template's fault."""
    command = [sys.executable, "-I", sandbox.__file__]
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env={}, start_new_session=True
        )
    except OSError as error:
        raise ResourceError(
            f"A process for the chat template cannot be started ({error.strerror})."
        ) from error
    with child:
        alarm = threading.Timer(PATIENCE_S, child.kill)
        alarm.start()
        try:
            output = _exchanged(child, request)
        finally:  # also on Ctrl-C: the child is in a session of its own and would not hear it
            alarm.cancel()
            child.kill()
    if len(output) > LARGEST_OUTPUT_BYTES:
        raise _broken(where, f"it writes more than {LARGEST_OUTPUT_BYTES // 2**20} MiB")
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _broken(where, f"it runs longer than {sandbox.PROCESSOR_S} s")
    try:
        answer = json.loads(output)
    except ValueError:
        raise _broken(where, f"its process ended with code {child.returncode}") from None
    return answer if isinstance(answer, dict) else {}


def _exchanged(child: "subprocess.Popen[bytes]", request: bytes) -> bytes:
    """Return at most one byte more than is allowed of what the child writes."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with child.stdin as stdin:
            stdin.write(request)
    except BrokenPipeError:
        return b""
    output = child.stdout.read(LARGEST_OUTPUT_BYTES + 1)
    if len(output) <= LARGEST_OUTPUT_BYTES:
        child.wait()
    return output


def _broken(where: str, reason: str) -> ModelError:
    return ModelError(
        f"{where} cannot be rendered: {brief(reason, 200)}. "
        "Mend the template, or remove it to chat in plain text."
    )
