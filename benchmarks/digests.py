"""Whether a change has changed results: small runs of every method, their metrics and adapters.

    python benchmarks/digests.py models --output before.json     # before the change
    python benchmarks/digests.py models --against before.json    # after it

Each run is whole, on a tiny random model, through the Python API. The models lie in the folder that is named,
and are made where it is not there; training a tokenizer anew may give another. Printed is a digest of each
run's metrics and adapters; with ``--against`` also the largest difference from the numbers recorded before.
Runs that the other file does not have are new, and are only named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))

from tiny import save_tiny_bert, save_tiny_llama

from fedloom import DflConfig, FedConfig, run_dfl, run_fed

_FED = {
    "data_name": "arithmetic",
    "client_num": 6,
    "client_num_per_step": 3,
    "client_batch_per_step": 4,
    "grad_accum_steps": 2,
    "prox_mu": 0.1,
    "max_steps": 3,
    "val_steps": 3,
    "client_lr": 0.05,
    "lora_r": 4,
    "max_layer_num": 1,
    "min_layer_num": 0,
    "dtype": "float32",
    "wave_tokens": 600,
    "max_length": 200,
    "report_to": "none",
    "device": "cpu",
}
_DFL = {
    "dataset_type": "arithmetic",
    "name": "ring",
    "num_clients": 5,
    "num_rounds": 3,
    "local_steps": 3,
    "batch_size": 4,
    "lora_r": 4,
    "lr": 0.01,
    "eval_every": 3,
    "dtype": "float32",
    "wave_tokens": 600,
    "max_length": 200,
    "report_to": "none",
    "device": "cpu",
}


def runs(models: Path, out_dir: str) -> dict[str, FedConfig | DflConfig]:
    """The runs by name."""
    if not models.exists():
        save_tiny_llama(models / "llama")
        save_tiny_bert(models / "bert")
    llama, bert = str(models / "llama"), str(models / "bert")
    fed = {"model_name": llama, "out_dir": out_dir} | _FED
    dfl = {"out_dir": out_dir} | _DFL
    found: dict[str, FedConfig | DflConfig] = {}
    for mode in ("fed", "fedGradFocus", "local"):
        for alg in ("FedAdam", "FedAVG", "FedProx"):
            name = f"{mode}-{alg}"
            found[name] = FedConfig(**fed, exp_name=name, train_mode=mode, fed_alg=alg)
    for kind in ("p-tuning", "prompt-tuning"):
        found[kind] = FedConfig(**fed, exp_name=kind, train_mode="fed", peft=kind, num_virtual_tokens=4)
    for kind in ("LoRA", "DFL-LoRA"):
        for what, model in (("llama", llama), ("bert", bert)):
            name = f"{kind}-{what}"
            found[name] = DflConfig(**dfl, exp_name=name, training_type=kind, model_checkpoint=model)
    more = {"drop_peer": 0.3, "drop_link": 0.2, "mix_head": False, "client_optimizer": "sgd"}
    found["LoRA-faults"] = DflConfig(**dfl, **more, exp_name="faults", model_checkpoint=bert)
    return found


def result(config: FedConfig | DflConfig) -> dict[str, list[float]]:
    """Every number that a run leaves, by where it stands."""
    run = run_fed(config) if isinstance(config, FedConfig) else run_dfl(config)
    numbers: dict[str, list[float]] = {}
    for row in run.rows:
        for name, value in row.items():
            if "seconds" not in name and isinstance(value, int | float | list):
                value = [math.nan if v is None else v for v in value] if isinstance(value, list) else value
                flat = torch.tensor(value, dtype=torch.float64).flatten().tolist()
                numbers[f"round {row['round']} {name}"] = flat
    assert run.checkpoint is not None
    for file in sorted(run.checkpoint.rglob("adapter_model.safetensors")):
        for name, t in load_file(file).items():
            numbers[f"{file.parent.name} {name}"] = t.double().flatten().tolist()
    return numbers


def difference(before: dict[str, list[float]], after: dict[str, list[float]]) -> float:
    """The largest difference of two runs' numbers; infinite where one has others than the other."""
    if before.keys() != after.keys():
        return float("inf")
    largest = 0.0
    for name, old in before.items():
        was, now = torch.tensor(old, dtype=torch.float64), torch.tensor(after[name], dtype=torch.float64)
        if was.shape != now.shape:
            return float("inf")
        if was.numel():
            largest = max(largest, float((was.nan_to_num() - now.nan_to_num()).abs().max()))
    return largest


def main() -> None:
    """Run all, print, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", type=Path, help="folder of the tiny models")
    parser.add_argument("--output", type=Path, help="write all numbers here")
    parser.add_argument("--against", type=Path, help="compare with the numbers in this file")
    words = parser.parse_args()
    before = json.loads(words.against.read_text()) if words.against else {}
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in runs(words.models, folder).items():
            found[name] = result(config)
            digest = hashlib.sha256(json.dumps(found[name], sort_keys=True).encode()).hexdigest()[:16]
            print(f"{name:<22} {digest}", end="")
            print(
                f"  largest difference {difference(before[name], found[name]):.2g}" if name in before else ""
            )
    if words.output:
        words.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
