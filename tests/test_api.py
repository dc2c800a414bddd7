"""fedloom from Python: a handful of names, loaded when they are asked for."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_bert, save_tiny_llama

import fedloom
from fedloom import AdapterBank, DflConfig, FedConfig, UserError, read_run, run_dfl, run_fed

pytestmark = pytest.mark.usefixtures("few_problems")


def alone(code):
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_the_package_alone_loads_nothing_heavy_and_none_of_its_parts():
    heavy = "{'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)"
    parts = "[name for name in sys.modules if name.startswith('fedloom.')]"
    assert alone(f"import sys, fedloom; dir(fedloom); print({heavy} or {parts})") == "[]"
    assert alone("import sys; from fedloom import FedConfig; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("name", fedloom.__all__)
def test_every_listed_name_is_there_and_type_checkers_know_it(name):
    assert getattr(fedloom, name).__name__ == name
    assert name in dir(fedloom)
    source = Path(fedloom.__file__).read_text(encoding="utf-8")
    assert f"import {name} as {name}\n" in source


def test_another_name_is_none_of_the_packages():
    with pytest.raises(AttributeError, match="run_fedd"):
        _ = fedloom.run_fedd


def test_a_run_with_a_server_in_a_handful_of_lines(tmp_path):
    config = FedConfig(
        model_name=str(save_tiny_llama(tmp_path / "model")),
        data_name="arithmetic",
        train_mode="fed",
        client_num=8,
        client_batch_per_step=2,
        out_dir=str(tmp_path),
        max_steps=2,
        val_steps=1,
        dtype="float32",
    )
    rounds, validations = [], []
    run = run_fed(config, on_round=rounds.append, on_validation=validations.append)
    assert rounds == run.rows[1:] and validations == [row for row in run.rows if "val_loss" in row]
    assert run.folder == tmp_path / "test"
    assert [round_ for round_, _ in run.column("val_loss")] == [0, 1, 2]
    assert [round_ for round_, _ in run.column("train_loss")] == [1, 2]
    assert run.rows[-1]["val_loss"] < run.rows[0]["val_loss"]
    assert run.options["client_num"] == 8 and run.options["dtype"] == "float32"
    assert run.summary["rounds"] == 2
    assert (run.checkpoint / "adapter_model.safetensors").is_file()
    assert read_run(run.folder) == run


def test_a_run_of_peers_in_a_handful_of_lines(tmp_path):
    config = DflConfig(
        model_checkpoint=str(save_tiny_bert(tmp_path / "model")),
        dataset_type="arithmetic",
        out_dir=str(tmp_path),
        num_clients=3,
        name="ring",
        num_rounds=1,
        local_steps=1,
        report_to="none",
        dtype="float32",
    )
    rounds, validations = [], []
    run = run_dfl(config, on_round=rounds.append, on_validation=validations.append)
    assert [row["round"] for row in rounds] == [1] and [row["round"] for row in validations] == [0, 1]
    assert len(run.rows[-1]["peer_val_accuracy"]) == 3
    assert (run.checkpoint / "peer-0003" / "adapter_model.safetensors").is_file()


def test_what_a_callback_raises_ends_the_run_and_resume_goes_on(tmp_path):
    class Enough(Exception):
        pass

    def stop(row):
        if row["round"] == 2:
            raise Enough

    model = save_tiny_llama(tmp_path / "model")
    config = FedConfig(
        model_name=str(model), data_name="arithmetic", out_dir=str(tmp_path), train_mode="fed", client_num=4,
        client_batch_per_step=1, max_steps=3, report_to="none", dtype="float32", val_limit=2,
    )  # fmt: skip
    with pytest.raises(Enough):
        run_fed(config, on_round=stop)
    (checkpoint,) = (tmp_path / "test" / "checkpoints").iterdir()
    assert checkpoint.name == "round-000001"
    assert run_fed(replace(config, resume=True)).rows[-1]["round"] == 3


def test_a_mistake_is_an_exception(tmp_path):
    with pytest.raises(UserError, match="client_num_per_step"):
        run_fed(FedConfig(train_mode="fed", client_num=2, client_num_per_step=3, out_dir=str(tmp_path)))
    with pytest.raises(UserError, match="is not the folder of a run"):
        read_run(tmp_path)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_gossip_is_a_product_with_a_bank():
    rows = torch.arange(6.0).view(3, 2)
    bank = AdapterBank({"w": rows, "grid": rows.view(3, 1, 2).double()})
    mixing = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]], dtype=torch.float64)
    for weights in (mixing, mixing.to_sparse_csr()):
        mixed = weights @ bank
        torch.testing.assert_close(mixed.tensors["w"], mixing.float() @ rows)
        torch.testing.assert_close(mixed.tensors["grid"], (mixing @ rows.double()).view(3, 1, 2))
        torch.testing.assert_close(mixed.mean(torch.ones(3))["w"], rows.mean(0))
