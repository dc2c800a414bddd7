"""Whether what options name is there, before torch is loaded: a slip of the keyboard is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedloom.data.clients import all_paths, check_varies, path_of, varies
from fedloom.data.files import matches
from fedloom.data.own import is_own_files
from fedloom.evaluation.saved_adapters import find_adapters
from fedloom.model.files import check_model_name
from fedloom.model.source import locate
from fedloom.options.audit_privacy import AuditPrivacyConfig
from fedloom.options.parsing import aliases
from fedloom.options.peer import PeerConfig
from fedloom.options.run import Run
from fedloom.process import place
from fedloom.runs.run_folder import check_folder, run_folder
from fedloom.runtimes.libp2p.identity import read_key
from fedloom.runtimes.libp2p.neighbors import read_neighbors


def check_paths(config: Any) -> None:
    """Look for the run's folder, adapters, data and model that options name, a model on the hub last.

    Of several processes none does: they tell each other, and torchrun has loaded torch.

    Args:
        config: Options of any command whose work is done on this machine.

    Raises:
        UserError: Something is not there.
    """
    if place().size > 1:
        return
    given = vars(config)
    given = given | {other: given[name] for other, name in aliases(given).items()}
    if isinstance(config, Run) and not isinstance(config, AuditPrivacyConfig):  # which leaves no run
        check_folder(run_folder(config), config.resume)
    if isinstance(config, PeerConfig) and config.identity and config.neighbors:
        read_key(Path(config.identity))
        read_neighbors(Path(config.neighbors), config.client, config.num_clients)
    if given.get("adapter") is not None:
        find_adapters([path.strip() for path in given["adapter"].split(",")])
    model = given.get("model_name") or given.get("model_checkpoint")
    if model is not None and locate(model).local:
        check_model_name(model)
    _check_data(config, given)
    if model is not None:
        check_model_name(model, given.get("token"))


def _check_data(config: Any, given: dict[str, Any]) -> None:
    folder = given.get("data_dir")
    if folder is not None:
        matches(Path(folder), "data_dir")
    for option in ("data_name", "dataset_type"):
        name = getattr(config, option, None)
        if name is not None and folder is None and is_own_files(name):
            matches(Path(name).expanduser(), option)
    for option in ("dataset_path_template", "val_dataset_path_template"):
        template = given.get(option)
        if template is None:
            continue
        if isinstance(config, PeerConfig):
            template = path_of(template, config.client)
        elif option == "dataset_path_template":
            check_varies(template, given["client_num"])
        counted_by = "client_num" if hasattr(config, "client_num") else "num_clients"
        all_paths(template, given["client_num"] if varies(template) else 1, option, counted_by)
