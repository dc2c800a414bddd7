"""`fedloom fed` with gradient priority, from the command line to its folder."""

import dataclasses
import math

import pytest
from run_files import adapter, assert_close, rows, write_rows
from tiny import save_tiny_llama

from fedloom.commands.cli import main
from fedloom.options.fed import FedConfig
from fedloom.options.parsing import parse
from fedloom.training.fed import drive
from fedloom.training.setup_fed import build, intervals

LAYERS = 4


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command line of a small run, without its name."""
    model = save_tiny_llama(tmp_path_factory.mktemp("model"), num_hidden_layers=LAYERS)
    data = tmp_path_factory.mktemp("data")
    for part, count in (("train", 60), ("validation", 8), ("test", 4)):
        rows = [{"question": f"Add {i} and {i % 7}.", "final_ans": i + i % 7} for i in range(count)]
        write_rows(data / f"{part}.jsonl", rows)
    words = f"fed --model_name {model} --data_dir {data} --data_name ChilleD/MultiArith --client_num 6"
    words += " --client_num_per_step 3 --dtype float32 --client_batch_per_step 4 --max_steps 4 --val_steps 2"
    words += " --report_to none --wave_tokens 600 --client_lr 0.05 --lr 0.01 --lora_r 4"
    return [*words.split(), "--max_layer_num", "1", "--min_layer_num", "1"]


@pytest.fixture
def fed(words, tmp_path):
    def run(name, *flags):
        assert main([*words, "--out_dir", str(tmp_path), "--exp_name", name, *flags]) == 0
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def one_run(words, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("runs")
    assert main([*words, "--out_dir", str(out_dir), "--exp_name", "run", "--report_to", "tensorboard"]) == 0
    return out_dir / "run"


@pytest.mark.parametrize("algorithm", ["FedAdam", "FedAVG", "FedProx"])
def test_every_algorithm_learns_and_says_what_it_selected(fed, one_run, algorithm):
    adam = algorithm == "FedAdam"
    folder = one_run if adam else fed("run", "--fed_alg", algorithm, "--lr", "0.05", "--max_steps", "2")
    size = sum(t.numel() * 4 for t in adapter(folder).values())
    for row in rows(folder)[1:]:
        assert len(row["selected_layers"]) == 2 and len(row["layer_scores"]) == LAYERS
        highest = max(range(LAYERS), key=row["layer_scores"].__getitem__)
        lowest = min(range(LAYERS), key=row["layer_scores"].__getitem__)
        assert row["selected_layers"] == sorted([highest, lowest])
        assert row["bytes_up"] == 3 * size * 2 // LAYERS
        assert row["bytes_down"] == row["bytes_up"] + 3
        assert math.isfinite(row["server_loss"]) and row["seconds"] > 0
    assert rows(folder)[-1]["val_loss"] < rows(folder)[0]["val_loss"]


@pytest.mark.parametrize("kind", ["l1", "l2", "lora_l1", "lora_l2", "lora_per_l1", "lora_per_l2"])
def test_every_kind_of_score_goes_through(fed, kind):
    assert all(
        score > 0 for score in rows(fed("run", "--grad_eval", kind, "--max_steps", "1"))[-1]["layer_scores"]
    )


def test_the_layers_of_a_policy_are_the_ones_it_names(fed):
    def selected(policy, rounds):
        folder = fed(policy, "--layer_policy", policy, "--max_steps", str(rounds))
        return [row["selected_layers"] for row in rows(folder)[1:]]

    assert selected("first", 2) == [[0, 1]] * 2 and selected("last", 2) == [[2, 3]] * 2
    assert selected("all", 2) == [[0, 1, 2, 3]] * 2
    assert len({tuple(layers) for layers in selected("random", 4)}) > 1


@pytest.mark.parametrize("policy", ["priority", "in_turn"])
def test_a_selection_stays_for_as_many_rounds_as_it_is_told_also_over_a_stop(fed, policy):
    """Selected in rounds 1, 3 and 5; where others rest the server looks at its data in these rounds alone."""
    words = ("--layer_policy", policy, "--layer_rounds", "2", "--server_grad_scale", "0", "--grad_eval", "l2")
    whole = rows(fed("whole", *words, "--max_steps", "6"))[1:]
    fed("stopped", *words, "--max_steps", "3")
    resumed = rows(fed("stopped", *words, "--max_steps", "6", "--resume"))[1:]
    layers = [row["selected_layers"] for row in whole]
    assert layers[0::2] == layers[1::2] and layers == [row["selected_layers"] for row in resumed]
    assert whole[-1]["val_loss"] == resumed[-1]["val_loss"]
    scored = ["layer_scores" in row for row in whole]
    assert scored == ([True, False] * 3 if policy == "priority" else [False] * 6)
    if policy == "in_turn":
        selected = {layer for of_round in layers for layer in of_round}
        assert selected == set(range(LAYERS))  # a pass is two selections, not two rounds


def test_the_layers_of_the_first_round_stay_for_the_whole_run(fed):
    kept = rows(fed("kept", "--layer_policy", "random", "--layer_rounds", "0", "--max_steps", "5"))[1:]
    assert len({tuple(row["selected_layers"]) for row in kept}) == 1


def test_options_that_choose_layers_say_so_where_all_are_trained(fed, caplog):
    fed(
        "plain",
        "--train_mode",
        "fed",
        "--layer_rounds",
        "3",
        "--max_steps",
        "1",
        "--alpha",
        "0.1",
        "--prox_mu",
        "1",
    )
    said = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert said[0] == "alpha: 0.1 has no effect with partition iid"
    assert "layer_rounds: 3 has no effect with train_mode fed, which trains all layers" in said
    assert said[-1] == "prox_mu: 1.0 has no effect with client_rule none"


def test_with_all_layers_it_is_fed(words, tmp_path):
    """The same parts driven in both modes, so that clients have the same data."""
    focused = options(words, tmp_path, "--max_layer_num", str(LAYERS), "--server_grad_scale", "3")
    config, parts = build(focused)
    folders = [tmp_path / "focused", tmp_path / "plain"]
    for folder in folders:
        folder.mkdir()
    drive(parts, intervals(config), folders[0])
    drive(dataclasses.replace(parts, focus=None), intervals(config), folders[1])
    assert_close(adapter(folders[0]), adapter(folders[1]))
    assert rows(folders[0])[-1]["bytes_up"] == rows(folders[1])[-1]["bytes_up"]


def options(words, tmp_path, *flags):
    return parse(FedConfig, [*words[1:], "--out_dir", str(tmp_path), *flags], prog="fedloom fed")


def test_without_layers_the_server_trains_alone(fed):
    folder = fed("alone", "--max_layer_num", "0", "--min_layer_num", "0", "--server_grad_scale", "1")
    last = rows(folder)[-1]
    assert last["clients"] == [] and last["bytes_up"] == last["bytes_down"] == 0
    assert last["train_loss"] is None and last["val_loss"] < rows(folder)[0]["val_loss"]


def test_a_resumed_run_selects_the_layers_of_one_never_stopped(fed, one_run):
    stopped = fed("stopped", "--max_steps", "2")
    assert [row["round"] for row in rows(stopped)] == [0, 1, 2]
    resumed = fed("stopped", "--max_steps", "4", "--resume")
    for key in ("selected_layers", "layer_scores", "server_loss"):
        assert [row[key] for row in rows(resumed)[1:]] == [row[key] for row in rows(one_run)[1:]]
    assert_close(adapter(resumed), adapter(one_run))


def test_nobody_else_has_the_servers_data(words, tmp_path):
    _, parts = build(options(words, tmp_path, "--server_data_fraction", "0.2"))
    clients = [int(i) for client in parts.data.clients for i in client]
    assert len(parts.data.server) == 12 and sorted([*clients, *parts.data.server]) == list(range(60))


def test_tensorboard_gets_a_heat_map_of_scores(one_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(one_run))
    events.Reload()
    pictures = events.Images("layer_scores")
    assert [picture.step for picture in pictures] == [2, 4]
    assert (pictures[-1].height, pictures[-1].width) == (LAYERS * 8, 4 * 8)
