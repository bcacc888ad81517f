"""Sandbox: the child process in which a chat template runs.   (floor 5 · engine)

Started by file name, so that it imports Jinja and nothing of Winnow: some 25 MB and a tenth of a second. It
reads one JSON object from standard input, gives up what a template has no need of, and writes one JSON
object: ``{"text": ...}``, ``{"refused": reason}`` where the template itself refused the conversation, or
``{"broken": reason}``. The conventions are those of Hugging Face: blocks trimmed, loop controls, ``tojson``
that escapes nothing, ``raise_exception``, ``strftime_now``, and the ``generation`` block, which marks text
and changes none.
"""

import datetime
import json
import resource
import sys
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 256 * 2**20
PROCESSOR_S = 2
LARGEST_REASON = 300  # characters


class RefusedConversation(Exception):
    """The template called ``raise_exception``."""


class GenerationBlock(Extension):
    """``{% generation %}...{% endgeneration %}``: what stands inside, as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja reads it from the class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes of the block's inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def confine() -> None:
    """Give up memory, time, new files, sockets and processes, for good; what is open stays open."""
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, limit in limits.items():
        _, hardest = resource.getrlimit(name)
        allowed = limit if hardest == resource.RLIM_INFINITY else min(limit, hardest)
        resource.setrlimit(name, (allowed, allowed))
    # One second more until the kernel kills: the signal of the softer limit says what happened.
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S, PROCESSOR_S + 1))


def render(template: str, values: dict[str, Any], now: str) -> str:
    """Return the text of `template` with `values`; `now` (ISO 8601) is what ``strftime_now`` formats.

    A name that is not defined prints as nothing, and fails where something of it is asked for, as in Hugging
    Face. Raises RefusedConversation, jinja2.TemplateError, or what the template's own arithmetic raises.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    moment = datetime.datetime.fromisoformat(now)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = moment.strftime
    return environment.from_string(template).render(values)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Return the one object that the child writes."""
    try:
        return {"text": render(request["template"], request["values"], request["now"])}
    except RefusedConversation as error:
        return {"refused": str(error)[:LARGEST_REASON]}
    except MemoryError:
        return {"broken": f"it needs more than {MEMORY_BYTES // 2**20} MiB of memory"}
    except jinja2.TemplateSyntaxError as error:
        return {"broken": f"line {error.lineno}: {error.message}"[:LARGEST_REASON]}
    except Exception as error:  # a template is a program: it can raise anything
        return {"broken": (str(error) or type(error).__name__)[:LARGEST_REASON]}


def _refuse(reason: object) -> None:
    raise RefusedConversation(str(reason))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


if __name__ == "__main__":
    received = json.loads(sys.stdin.buffer.read())
    # What Python and Jinja import at first use must be there before no file can be opened any more.
    for rehearsal in (
        "{{ 'text' | tojson }}{{ strftime_now('%d %B') }}",
        "{{ not.there }}",
        "{{ ''.__class__.a }}",
    ):
        answer({"template": rehearsal, "values": {}, "now": received["now"]})
    confine()
    sys.stdout.buffer.write(json.dumps(answer(received)).encode())
