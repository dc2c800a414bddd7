"""`fedloom flower`: write a folder that `flwr run` starts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedloom.data.tasks import TASKS
from fedloom.errors import UserError
from fedloom.options.check_flower import NODE, WORDS
from fedloom.options.flower import FlowerConfig
from fedloom.runtimes.flower.signed import read_signing_key, sign_app
from fedloom.training.flower.run_config import to_run_config

_PROJECT = """\
# Written by `fedloom flower`. Start it with `flwr run .`; fedloom itself must be installed on every machine.
[project]
name = {name}
version = "{version}"
description = "A federation of fedloom over Flower"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "{publisher}"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

# The options of `fedloom flower --help`. To change one for one run: flwr run . --run-config "max_steps=3"
[tool.flwr.app.config]
{options}
"""
_MODULE = '''\
"""The {part}: fedloom's."""

from fedloom.training.flower.{module} import app as {name}

app = {name}
'''
_PACKAGE = "federation"
_PUBLISHER = "fedloom"
_VERSION = "1.0.0"


def write_app(config: FlowerConfig) -> Path:
    """Write the folder of an app, with the options as its run config.

    Paths that exist here become absolute, since Flower's processes run elsewhere.

    Raises:
        UserError: There is something in the way, or the key cannot be used.
    """
    folder = Path(config.output_path)
    key = None if config.signing_key is None else read_signing_key(Path(config.signing_key))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(
            f"output_path: '{folder}' is there already; give a folder that does not exist yet, or remove "
            "what is there"
        )
    name = _project_name(config)
    listed = "\n".join(f"{key} = {_toml(value)}" for key, value in to_run_config(_settled(config)).items())
    files = {
        "pyproject.toml": _PROJECT.format(
            name=_toml(name), version=_VERSION, publisher=_PUBLISHER, package=_PACKAGE, options=listed
        ),
        f"{_PACKAGE}/__init__.py": '"""Flower\'s two apps."""\n',
        f"{_PACKAGE}/server_app.py": _MODULE.format(part="ServerApp", module="server", name="server_app"),
        f"{_PACKAGE}/client_app.py": _MODULE.format(part="ClientApp", module="client", name="client_app"),
    }
    try:
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
        if key is not None:
            sign_app(folder, key, config.hub_url)
    except OSError as error:
        raise UserError(
            f"output_path: '{folder}' cannot be written ({error.strerror}); choose another"
        ) from None
    return folder


def start_command(config: FlowerConfig) -> str:
    """What starts the app of `write_app`, on a SuperLink that is called mine where it is signed."""
    if config.signing_key is None:
        return f"flwr run {config.output_path}"
    return f"flwr run @{_PUBLISHER}/{_project_name(config)}=={_VERSION} mine"


def _project_name(config: FlowerConfig) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", config.exp_name.lower()).strip("-") or "federation"
    return f"fedloom-{name}"


def _settled(config: FlowerConfig) -> FlowerConfig:
    settled: dict[str, Any] = {"out_dir": str(Path(config.out_dir).absolute())}
    for name in ("model_name", "data_dir", "data_name"):
        value = getattr(config, name)
        if value is not None and value not in TASKS and Path(value).exists():
            settled[name] = str(Path(value).absolute())
    if config.client_data not in (None, NODE):
        settled["client_data"] = str(Path(config.client_data).absolute())
    if config.client_keys not in WORDS:
        settled["client_keys"] = str(Path(config.client_keys).absolute())
    return replace(config, **settled)


def _toml(value: Any) -> str:
    # JSON's words for text, numbers and truth are TOML's too.
    return json.dumps(value, ensure_ascii=False)
