"""A chat template is a program that comes with a model: it must end."""

import functools
import json
import subprocess
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fedloom.errors import UserError

CPU_SECONDS = 3
"""For a short talk; an ordinary template takes a thousandth of one."""

GIBIBYTES = 1
_APART = Path(__file__).with_name("template_apart.py")
_PATIENCE = 10  # seconds of waiting per second of computing: the machine may be busy


def check_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Let a tokenizer's chat template render a few short talks in a process of its own, which can be ended.

    What else may be wrong with a template shows when it is used.

    Args:
        tokenizer: The model's.
        name: The model, for the message.

    Raises:
        UserError: It takes too long, or too much memory.
    """
    try:
        template = tokenizer.get_chat_template()
    except (ValueError, TypeError):  # there is none, or none for everything
        return
    if isinstance(template, str) and not _ends(
        template, json.dumps(tokenizer.special_tokens_map, default=str)
    ):
        raise UserError(
            f"model {name!r}: its chat template does not end, or needs more than {GIBIBYTES} GiB, for a talk "
            "of two sentences. Mend chat_template in the folder (tokenizer_config.json or "
            "chat_template.jinja), or fetch it again."
        )


@functools.cache
def _ends(template: str, special: str) -> bool:
    task = json.dumps({"template": template, "special": json.loads(special)})
    limits = [str(CPU_SECONDS), str(GIBIBYTES << 30)]
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_APART), *limits],
            input=task,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE * CPU_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
