"""Federated fine-tuning of language models: many clients, one frozen base, one pass.

The names of `__all__` are the Python API. Each is imported when it is first asked for, so that
`import fedloom` loads neither torch nor transformers:

    from fedloom import FedConfig, run_fed

    run = run_fed(FedConfig(model_name="smollm2-135m", data_name="arithmetic", train_mode="fed", max_steps=8))
    print(run.rows[-1]["val_accuracy"], run.checkpoint)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedloom.client.local import LocalRules as LocalRules
    from fedloom.client.local import train_locally as train_locally
    from fedloom.client.optimisers import adam as adam
    from fedloom.client.optimisers import sgd as sgd
    from fedloom.client.steps import mean_step as mean_step
    from fedloom.commands.dfl import run_dfl as run_dfl
    from fedloom.commands.fed import run_fed as run_fed
    from fedloom.data.encode import Tokens as Tokens
    from fedloom.errors import UserError as UserError
    from fedloom.federation.consensus import consensus as consensus
    from fedloom.federation.topology import build_topology as build_topology
    from fedloom.federation.topology import mixing as mixing
    from fedloom.model.adapters.choice import lora as lora
    from fedloom.model.adapters.choice import p_tuning as p_tuning
    from fedloom.model.adapters.choice import prompt_tuning as prompt_tuning
    from fedloom.model.bank import AdapterBank as AdapterBank
    from fedloom.model.base import load_base as load_base
    from fedloom.model.stacked import StackedModel as StackedModel
    from fedloom.options.fed import FedConfig as FedConfig
    from fedloom.options.graph import DflConfig as DflConfig
    from fedloom.runs.record import RunRecord as RunRecord
    from fedloom.runs.record import read_run as read_run

_PLACES = {
    # Whole runs, as the commands make them.
    "FedConfig": "options.fed",
    "DflConfig": "options.graph",
    "run_fed": "commands.fed",
    "run_dfl": "commands.dfl",
    "read_run": "runs.record",
    "RunRecord": "runs.record",
    "UserError": "errors",
    # The engine.
    "load_base": "model.base",
    "lora": "model.adapters.choice",
    "p_tuning": "model.adapters.choice",
    "prompt_tuning": "model.adapters.choice",
    "StackedModel": "model.stacked",
    "AdapterBank": "model.bank",
    "Tokens": "data.encode",
    "mean_step": "client.steps",
    "LocalRules": "client.local",
    "train_locally": "client.local",
    "sgd": "client.optimisers",
    "adam": "client.optimisers",
    # The graph of peers.
    "build_topology": "federation.topology",
    "mixing": "federation.topology",
    "consensus": "federation.consensus",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fedloom' has no attribute {name!r}")
    value = getattr(import_module(f"fedloom.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
