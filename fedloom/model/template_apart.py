"""Run by `template.py`, in a process of its own: render a chat template, and end with 0 if that ends.

It imports nothing but jinja, so that the process is there at once. What transformers gives to templates is
here in outline: a template that fails for the lack of something has ended, and that is all that is asked.
"""

import contextlib
import json
import sys
from typing import Any

from jinja2 import Template, ext, nodes, parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_TALKS = (("system", "user"), ("user",), ("user", "assistant"), ("system", "user", "assistant", "user"))
_OUT_OF_MEMORY = 3


class _Generation(ext.Extension):
    """The tag that marks what the assistant says."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> int:
    """Read the template from the standard input, and render it."""
    _limit(int(sys.argv[1]), int(sys.argv[2]))
    task = json.load(sys.stdin)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: form}
    try:
        template = environment.from_string(task["template"])
        for roles in _TALKS:
            for parts in (False, True):
                for asks in (True, False):
                    _render(
                        template,
                        messages=[_message(role, parts) for role in roles],
                        add_generation_prompt=asks,
                        tools=None,
                        documents=None,
                        **task["special"],
                    )
    except MemoryError:
        return _OUT_OF_MEMORY
    except Exception:  # it is no template at all; whoever uses it will hear of that
        return 0
    return 0


def _render(template: Template, **values: Any) -> None:
    try:
        template.render(**values)
    except MemoryError:
        raise
    except Exception:  # it has ended
        return


def _message(role: str, parts: bool) -> dict[str, Any]:
    text = "Is 1 + 1 = 2?"
    return {"role": role, "content": [{"type": "text", "text": text}] if parts else text}


def _refuse(message: str) -> None:
    raise ValueError(message)


def _limit(seconds: int, memory: int) -> None:
    """Have the system end this process when it takes too much; where it cannot, the parent does."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


if __name__ == "__main__":
    sys.exit(main())
