"""What goes into the base: FedEx-LoRA's residual and FLoRA's products."""

import json

import pytest
import torch
from engine import clients_data, make_stacked, start_bank, steps_of
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny import save_tiny_llama, tiny_llama
from transformers import AutoModelForCausalLM

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.commands.cli import main
from fedloom.federation.aggregators import Changes
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.lora_aggregations.fedex import fedex
from fedloom.federation.lora_aggregations.flora import flora
from fedloom.model.adapters.folding import bytes_of_fold, folded, unchanged, with_factors
from fedloom.model.adapters.lora import StackedLora
from fedloom.model.adapters.products import DOWN, UP, lora_pairs
from fedloom.model.bank import AdapterBank
from fedloom.runs.checkpoint import latest_checkpoint

A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "head"
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def changes(senders=3, same=False, one_a=False, scales=None, seed=1):
    """What clients send whose factors are drawn at random, of rank 2 in a module of 5 by 6."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {A: (2, 6), B: (5, 2), HEAD: (3,)}
    before = {n: torch.randn(shape, generator=draws, dtype=torch.float64) for n, shape in shapes.items()}
    deltas = {
        n: torch.randn((senders, *shape), generator=draws, dtype=torch.float64) for n, shape in shapes.items()
    }
    for name in shapes if same else [A] if one_a else []:
        deltas[name] = deltas[name][:1].expand_as(deltas[name])
    weights = WEIGHTS[:senders] / WEIGHTS[:senders].sum()
    return Changes(before, AdapterBank(deltas), weights, lora_pairs(before), scales)


def products(arrived, scales=(1.0, 1.0, 1.0)):
    """Σ_k p_k s_k B_k A_k, as a loop."""
    total = torch.zeros(5, 6, dtype=torch.float64)
    for k, weight in enumerate(arrived.weights):
        row = {n: arrived.before[n] + t[k] for n, t in arrived.deltas.tensors.items()}
        total += weight * scales[k] * row[B] @ row[A]
    return total


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [{}, {"senders": 1}, {"same": True}, {"one_a": True}])
def test_fedex_is_the_mean_of_the_products_and_its_residual_vanishes_where_factors_suffice(case):
    arrived = changes(**case)
    change = fedex(aggregator=weighted_mean)(arrived)
    after = {name: t + change[name] for name, t in arrived.before.items()}
    base = folded(unchanged(arrived.before), change)
    close(base["m"] + after[B] @ after[A], products(arrived))
    for name, t in weighted_mean(arrived).items():
        close(change[name], t)
    assert (base["m"].abs().max() < 1e-12) == bool(case)


@pytest.mark.parametrize("scales", [None, (2.0, 1.0, 0.5)])
def test_flora_folds_the_products_and_begins_anew(scales):
    arrived = changes(scales=None if scales is None else torch.tensor(scales, dtype=torch.float64))
    change = flora(aggregator=weighted_mean)(arrived)
    close(folded(unchanged(arrived.before), change)["m"], products(arrived, scales or (1, 1, 1)))
    after = {name: t + change[name] for name, t in arrived.before.items()}
    assert not after[B].any() and 0.1 < after[A].abs().max() <= 6**-0.5 + 1e-12
    close(change[HEAD], weighted_mean(arrived)[HEAD])
    alone = changes(senders=1)
    merged = folded(unchanged(alone.before), flora(aggregator=weighted_mean)(alone))["m"]
    close(merged, products(alone))


def summed(base):
    return base["m"] if "m" in base else base["m" + UP] @ base["m" + DOWN]


@pytest.mark.parametrize("aggregation", [fedex, flora])
def test_a_cap_above_the_rank_of_the_whole_changes_nothing(aggregation):
    """Three rounds; the change has at most the five directions of its module."""
    exact, capped = unchanged(changes().before), unchanged(changes().before, 5)
    for seed in range(3):
        change = aggregation(aggregator=weighted_mean)(changes(seed=seed))
        exact, capped = folded(exact, change), folded(capped, change)
        close(summed(capped), summed(exact))
    assert capped["m" + UP].shape == (5, 5) and torch.linalg.matrix_rank(exact["m"]) == 5


@pytest.mark.parametrize("rank", [1, 3])
def test_a_capped_change_is_the_nearest_of_its_rank(rank):
    change = flora(aggregator=weighted_mean)(changes())
    capped = folded(unchanged(changes().before, rank), change)
    U, S, Vh = torch.linalg.svd(products(changes()), full_matrices=False)
    close(summed(capped), U[:, :rank] * S[:rank] @ Vh[:rank])
    assert capped["m" + DOWN].shape == (rank, 6)
    assert bytes_of_fold(capped, change) == 8 * rank * (5 + 6) < bytes_of_fold({}, change)
    again = folded(capped, flora(aggregator=weighted_mean)(changes(seed=2)))
    U, S, Vh = torch.linalg.svd(summed(capped) + products(changes(seed=2)), full_matrices=False)
    close(summed(again), U[:, :rank] * S[:rank] @ Vh[:rank])


def test_with_a_cap_of_0_fedex_is_fedavg():
    change = fedex(aggregator=weighted_mean, residual_rank=0)(changes())
    for name, t in weighted_mean(changes()).items():
        assert torch.equal(change.pop(name), t)
    assert not change and not folded(unchanged(changes().before, 0), change)


@pytest.mark.parametrize(
    "d_out, d_in, rank, more", [(90, 70, 3, 3), (70, 90, 20, 20), (90, 70, 60, 70), (9, 7, 2, 7)]
)
def test_saved_the_change_is_an_adapter_of_a_higher_rank(d_out, d_in, rank, more):
    """As many more rows as the change has directions; where it has nearly all, as many as a side has."""
    draws = torch.Generator().manual_seed(2)

    def drawn(*shape):
        return torch.randn(shape, generator=draws, dtype=torch.float64)

    row = {A: drawn(2, d_in), B: drawn(d_out, 2), HEAD: drawn(3)}
    base = {"m": drawn(d_out, rank) @ drawn(rank, d_in)}
    saved, found = with_factors(row, base)
    assert found == more and saved[A].shape == (2 + more, d_in) and torch.equal(saved[HEAD], row[HEAD])
    torch.testing.assert_close(saved[B] @ saved[A], row[B] @ row[A] + base["m"], rtol=1e-6, atol=1e-5)


def test_a_base_that_has_not_changed_adds_nothing():
    row = {A: torch.randn(2, 90), B: torch.randn(70, 2)}
    saved, more = with_factors(row, unchanged(row))
    assert more == 0 and torch.equal(saved[A], row[A]) and torch.equal(saved[B], row[B])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def fed(base, tmp_path):
    """Runs `fedloom fed` for some rounds; returns the last row of metrics and the checkpoint."""
    lines = [json.dumps({"question": f"{i} and {i}?", "answer": f"{i * 7 % 11}"}) for i in range(16)]
    for part, count in (("train", 16), ("validation", 4), ("test", 2)):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines[:count]))

    def run(name, words, rounds=2):
        line = f"fed --model_name {base} --data_name qa --data_dir {tmp_path} --out_dir {tmp_path}"
        line += f" --exp_name {name} --lora_r 2 --dtype float32 --report_to none --client_num 3"
        line += f" --client_num_per_step 3 --client_lr 0.5 --val_steps {rounds} --max_steps {rounds}"
        assert main([*line.split(), *words.split()]) == 0
        last = (tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]
        return json.loads(last), latest_checkpoint(tmp_path / name)

    return run


@pytest.mark.parametrize("method", ["FedEx-LoRA", "FLoRA", "FedEx-LoRA --residual_rank 3"])
def test_peft_loads_what_the_run_came_to(fed, base, method):
    """W_0 + s F + s B A, of the checkpoint's state, are the weights that PEFT makes of its adapter."""
    row, checkpoint = fed("run", f"--method {method}")
    capped = "--residual_rank" in method
    if capped:
        assert json.loads((checkpoint / "adapter_config.json").read_text())["r"] == 2 + 3
    plain, wrapped = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) for _ in range(2))
    merged = PeftModel.from_pretrained(wrapped, checkpoint).merge_and_unload()
    state, scale = load_file(checkpoint / "state" / "tensors.safetensors"), 32 / 2
    if capped:
        products = {name: t @ state[name.replace(UP, DOWN)] for name, t in state.items() if name.endswith(UP)}
        state |= {name.removesuffix(UP): t for name, t in products.items()}
    names = [name for name in state if name.startswith("base.") and not name.endswith((UP, DOWN))]
    assert names
    for module in (name.removeprefix("base.") for name in names):
        inside = module.removeprefix("base_model.model.") + ".weight"
        a, b = (state[f"adapter.{module}.lora_{factor}.weight"] for factor in "AB")
        expected = plain.get_parameter(inside) + scale * (state[f"base.{module}"] + b @ a)
        torch.testing.assert_close(merged.get_parameter(inside), expected, rtol=1e-5, atol=1e-5)
        assert state[f"base.{module}"].abs().max() > 1e-7
        assert method != "FLoRA" or not b.any()
    sent_plainly, _ = fed("plain", "--method FedAvg")
    assert row["bytes_up"] == sent_plainly["bytes_up"] < row["bytes_down"]


@pytest.mark.parametrize("rank, factored", [(None, False), (1, False), (1, True), (2, True)])
def test_a_clients_own_adapter_is_saved_with_the_change_of_the_base(tmp_path, rank, factored):
    """s_k B A + s F: the client's scale is that of its rank, the change's that of the adapter."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj"])
    model = make_stacked(tiny_llama(num_hidden_layers=1), config)
    row = {name: torch.randn_like(t) for name, t in model.initial.items()}
    (module,) = unchanged(row)
    P, Q = torch.randn(len(unchanged(row)[module]), 3), torch.randn(3, unchanged(row)[module].shape[1])
    base = {module + UP: P, module + DOWN: Q} if factored else {module: P @ Q}
    model.save(row, tmp_path, rank=rank, base=base)
    saved = PeftModel.from_pretrained(tiny_llama(num_hidden_layers=1), tmp_path)
    ((name_a, name_b),) = lora_pairs(row)
    k = rank or 2
    wanted = 4 / k * row[name_b][:, :k] @ row[name_a][:k] + 2 * P @ Q
    found = saved.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight("default")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_beside_the_base_or_in_its_weights_a_change_trains_the_same():
    """In float64, with dropout, which is LoRA's alone: what stands beside the weights has none."""
    data, trained = clients_data((2, 1)), []
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_dropout=0.3)
    for beside in (False, True):
        model, draws = make_stacked(tiny_llama().double(), config, data), torch.Generator().manual_seed(3)
        base = {
            name: torch.randn(t.shape, generator=draws, dtype=torch.float64) / 10
            for name, t in unchanged(start_bank(model, 1).row(0), rank=3).items()
        }
        whole = {n.removesuffix(UP): t @ base[n.replace(UP, DOWN)] for n, t in base.items() if n.endswith(UP)}
        model.fold(base if beside else whole)
        work = [steps_of(k, client, model.layout) for k, client in enumerate(data)]
        rules = LocalRules(sgd(0.1), dropout_seed=1)
        trained.append(train_locally(model, start_bank(model, 2), work, rules))
    for name, t in trained[0].bank.tensors.items():
        close(trained[1].bank.tensors[name], t)
    close(trained[1].loss, trained[0].loss)
    model.fold({})
    assert not any(module.beside for module in model.model.modules() if isinstance(module, StackedLora))


def test_kept_beside_the_base_or_folded_into_it_the_model_is_the_same_and_goes_on(fed):
    """The tiny model's layers are 32 wide: of rank 32 nothing is lost."""
    words = "--val_steps 1 --method FedEx-LoRA --lora_dropout 0.2"
    whole, _ = fed("whole", words)
    beside, checkpoint = fed("beside", f"{words} --residual_rank 32")
    for name in ("val_loss", "train_loss", "bytes_down"):  # a round adds rank 6, which is less than 32
        assert beside[name] == pytest.approx(whole[name], rel=1e-5), name
    fed("parts", f"{words} --residual_rank 32", rounds=1)
    _, resumed = fed("parts", "--val_steps 1 --resume")
    one, other = (load_file(folder / "state" / "tensors.safetensors") for folder in (checkpoint, resumed))
    assert all(torch.equal(t, other[name]) for name, t in one.items())


def test_a_cap_of_0_sends_and_learns_what_fedavg_does(fed):
    plain, _ = fed("plain", "--method FedAvg")
    none, _ = fed("none", "--method FedEx-LoRA --residual_rank 0")
    assert none["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-6)
    assert none["bytes_down"] == plain["bytes_down"]


@pytest.mark.parametrize("method, rounds", [("FedEx-LoRA", 2), ("FLoRA", 1)])
def test_with_one_client_the_model_is_that_of_fedavg(fed, method, rounds):
    """The mean of one is the one, however it is held: the same validation."""
    one = "--client_num 1 --client_num_per_step 1"
    plain, _ = fed("plain", f"--method FedAvg {one}", rounds)
    held, _ = fed("held", f"--method {method} {one}", rounds)
    assert held["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "command, words, said",
    [
        ("fed", "--lora_aggregation fedex", "server_optimizer none"),
        ("fed", "--method FedEx-LoRA --train_mode fedGradFocus", "fedGradFocus trains some"),
        ("fed", "--method FedEx-LoRA --lora_r 2,4", "factors of unequal rank"),
        ("fed", "--method FedEx-LoRA --aggregator median", "no aggregator but mean"),
        ("fed", "--method FLoRA --compress int8", "ends every round with new factors"),
        ("fed", "--method FLoRA --client_rule scaffold", "ends every round with new factors"),
        ("fed", "--method FLoRA --residual_rank 0", "leaves flora nothing"),
        ("fed", "--method FlexLoRA --residual_rank 4", "lora_aggregation flexlora leaves it as it is"),
        ("dfl", "--training_type LoRA --lora_aggregation flora", "peers without a server share none"),
        ("dfl", "--method FedEx-LoRA", "residual_rank: none, but without a server"),
        ("dfl", "--method FedEx-LoRA --residual_rank 0", "give a cap, as in --residual_rank 16"),
        ("dfl", "--method FedEx-LoRA --residual_rank 4 --compress int8", "estimates of the old ones"),
        ("dfl", "--method FlexLoRA --residual_rank 4", "lora_aggregation flexlora leaves it as it is"),
    ],
)
def test_what_has_no_meaning_is_refused(base, command, words, said, capsys):
    model = [{"fed": "--model_name", "dfl": "--model_checkpoint"}[command], str(base)]
    mode = "" if command == "dfl" or "--train_mode" in words else "--train_mode fed"
    assert main([command, *model, *mode.split(), *words.split()]) == 2
    assert said in capsys.readouterr().err
