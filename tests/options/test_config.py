"""Options: the documented names and defaults, how sources combine, and what bad values get."""

import dataclasses
import re

import pytest

from fedloom.commands.cli import COMMANDS, main
from fedloom.errors import UserError
from fedloom.options.check_fed import check
from fedloom.options.declare import names_or_pattern, options
from fedloom.options.fed import FedConfig
from fedloom.options.flower import FlowerConfig
from fedloom.options.graph import DflConfig
from fedloom.options.parsing import help_text, parse, read_options
from fedloom.options.synonyms import OPTIONS

TOKEN = "hf_" + "aB3" * 11

# The documented table: a change here is a change of the interface.
DEFAULTS = {
    "exp_name": "test",
    "device": "auto",
    "token": None,
    "fed_alg": "FedAdam",
    "peft": "lora",
    "client_num": 50,
    "client_num_per_step": 4,
    "data_name": "gsm8k",
    "data_format": "auto",
    "columns": None,
    "train_limit": None,
    "dpo_beta": 0.1,
    "model_name": "meta-llama/Llama-2-7b-chat-hf",
    "client_epoch": 1,
    "client_batch_per_step": 8,
    "batch_size": 2,
    "grad_accum_steps": 4,
    "grad_accum_mean": "tokens",
    "accumulate": "mean",
    "max_steps": 6000,
    "val_steps": 100,
    "lr": 5e-4,
    "client_lr": 1e-4,
    "train_mode": "fedGradFocus",
    "max_layer_num": 6,
    "min_layer_num": 2,
    "grad_eval": "lora_per_l1",
    "layer_policy": "priority",
    "layer_rounds": 1,
    "server_data_fraction": 0.005,
    "server_batches": 4,
    "server_grad_scale": 0.1,
    "seed": 3407,
    "data_seed": 3407,
    "out_dir": "runs",
    "config": None,
    "resume": False,
    "data_dir": None,
    "dataset_path_template": None,
    "val_dataset_path_template": None,
    "partition": "iid",
    "alpha": 0.5,
    "min_size": 1,
    "labels_per_client": 2,
    "field": None,
    "dtype": "auto",
    "quantize": "none",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "target_modules": None,
    "num_virtual_tokens": None,
    "max_length": 512,
    "system_prompt": "auto",
    "prompt_format": "auto",
    "prompt_date": "2024-07-26",
    "prox_mu": 0.01,
    "val_limit": None,
    "patience": 3,
    "eval_generate_every": 0,
    "eval_generate_limit": 64,
    "clip_norm": 0.0,
    "client_optimizer": "sgd",
    "loraplus_lr_ratio": 1.0,
    "residual_rank": None,
    "use_rslora": False,
    "method": None,
    "plugin": None,
    "server_optimizer": "auto",
    "client_rule": "auto",
    "aggregator": "auto",
    "lora_aggregation": "auto",
    "train_factors": "auto",
    "share": "auto",
    "compress": "auto",
    "attack": "none",
    "attackers": None,
    "privacy": "none",
    "clip": "adaptive",
    "noise_multiplier": "auto",
    "target_epsilon": None,
    "delta": "auto",
    "accountant": "pld",
    "privacy_seed": None,
    "secure_aggregation": None,
    "report_to": "tensorboard",
    "wave_tokens": "auto",
    "trust_remote_code": False,
}

CHOICES = {
    "fed_alg": ("FedAdam", "FedAVG", "FedAvg", "FedProx"),
    "peft": ("lora", "p-tuning", "prompt-tuning"),
    "data_name": (
        *("gsm8k", "camel-ai/math", "ChilleD/SVAMP", "ChilleD/MultiArith", "arithmetic", "qa"),
        *("sst2", "qnli", "mnli"),
    ),
    "data_format": (
        "auto",
        "language_modeling",
        "prompt_completion",
        "preference",
        "messages",
        "sharegpt",
        "alpaca",
        "question_answer",
        "text",
        "classification",
    ),
    "partition": ("iid", "dirichlet", "quantity", "shards", "by_field"),
    "system_prompt": ("auto", "none"),
    "prompt_format": ("auto", "plain", "llama-2", "zephyr"),
    "train_mode": ("local", "fed", "fedGradFocus"),
    "grad_accum_mean": ("tokens", "batches"),
    "accumulate": ("mean", "sum"),
    "grad_eval": ("l1", "l2", "lora_l1", "lora_l2", "lora_per_l1", "lora_per_l2"),
    "layer_policy": ("priority", "random", "in_turn", "spaced", "last", "first", "all"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantize": ("none", "8bit", "4bit"),
    "client_optimizer": ("sgd", "adam", "adamw"),
    "wave_tokens": ("auto",),
    "privacy": ("none", "user", "example"),
    "noise_multiplier": ("auto",),
    "delta": ("auto",),
    "accountant": ("pld", "rdp"),
}


@pytest.fixture(autouse=True)
def _no_token_in_environment(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)


def parse_fed(*argv: str) -> FedConfig:
    return parse(FedConfig, argv, prog="fedloom fed")


def test_names_defaults_and_choices_are_the_documented_ones():
    assert {option.name: option.default for option in options(FedConfig)} == DEFAULTS
    assert {option.name: option.choices for option in options(FedConfig) if option.choices} == CHOICES


def test_an_empty_command_line_means_the_defaults():
    assert parse_fed() == FedConfig()
    assert dataclasses.asdict(FedConfig()) == DEFAULTS


def test_every_default_keeps_its_own_rule():
    assert [option.name for option in options(FedConfig) if not option.allows(option.default)] == []


def test_help_shows_every_flag_once_with_its_group_and_default():
    text = help_text(FedConfig, prog="fedloom fed", description="Fine-tune.")
    for option in options(FedConfig):
        assert len(re.findall(rf"^  --{option.name}[, ]", text, re.MULTILINE)) == 1
        assert option.help
        assert f"\n{option.group}:\n" in text
    words = " ".join(text.split())
    assert "(default: meta-llama/Llama-2-7b-chat-hf)" in words
    assert "FedAVG with lr = client_lr is the textbook's plain averaging" in words


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("name", ["fed", "eval", "audit"])
def test_help_is_as_wide_as_the_terminal(monkeypatch, columns, name):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text(COMMANDS[name].config_class, prog=f"fedloom {name}", description="What it does.")
    lines = [line for line in text.splitlines() if not line.strip().startswith("-")]
    assert max(map(len, lines)) < columns
    if name != "audit":
        assert max(map(len, lines)) > columns - 12


@pytest.mark.parametrize(
    ("config_class", "said"),
    [
        (FedConfig, "--lr FLOAT"),
        (FedConfig, "--dtype auto|float32|bfloat16|float16"),
        (FedConfig, "--resume [true|false]"),
        (FedConfig, "--wave_tokens INT|auto"),
        (FedConfig, "--out_dir PATH"),
        (FedConfig, "--exp_name NAME"),
        (FedConfig, "--token TOKEN"),
        (FedConfig, "--max_steps, --num_rounds INT"),
        (FedConfig, "--grad_eval GRAD_EVAL"),
        (COMMANDS["report"].config_class, "--runs PATH [PATH ...]"),
    ],
)
def test_help_shows_what_a_value_is(config_class, said):
    text = help_text(config_class, prog="fedloom", description="What it does.")
    assert re.search(rf"^  {re.escape(said)}(  |$)", text, re.MULTILINE)
    if "GRAD_EVAL" in said:
        assert "{l1, l2, lora_l1, lora_l2, lora_per_l1, lora_per_l2}" in " ".join(text.split())


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_terminals(monkeypatch, capsys, terminal, environment, expected):
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert main(["fed", "--help"]) == 0
    text = capsys.readouterr().out
    assert ("\x1b[1mHardware:\x1b[0m" in text and "  \x1b[36m--device TEXT\x1b[0m  " in text) is expected
    assert ("\x1b" in text) is expected


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--client-num", "8"], "client_num", 8),
        (["--client-num=8"], "client_num", 8),
        (["--client_num=8"], "client_num", 8),
        (["--lr", "5e-3"], "lr", 5e-3),
        (["--fed_alg", "FedAvg"], "fed_alg", "FedAVG"),
        (["--resume"], "resume", True),
        (["--resume", "true"], "resume", True),
        (["--resume", "false"], "resume", False),
        (["--wave_tokens", "4096"], "wave_tokens", 4096),
        (["--wave_tokens", "auto"], "wave_tokens", "auto"),
        (["--target_modules", "none"], "target_modules", None),
        (["--num-virtual-tokens=none"], "num_virtual_tokens", None),
        (["--model_name=./my-model"], "model_name", "./my-model"),
        (["--exp_name", "2024"], "exp_name", "2024"),
        (["--quantize", "none"], "quantize", "none"),
    ],
)
def test_a_flag_gives_a_typed_value_and_leaves_the_rest(argv, name, value):
    config = parse_fed(*argv)
    assert getattr(config, name) == value and type(getattr(config, name)) is type(value)
    assert dataclasses.asdict(config) == DEFAULTS | {name: value}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("client_num", [1, 10], [0, 2.5, True, "4", None]),
        ("lr", [1, 1e-9], [0, -1.0, float("nan"), float("inf"), False, "auto", None]),
        ("wave_tokens", [1, "auto"], [0, 1.5, "some", None]),
        ("num_virtual_tokens", [None, 1], [0, "many"]),
        ("resume", [True, False], [1, "true", None]),
        ("peft", ["p-tuning"], ["p-tunning", 1, None]),
        ("data_dir", [None, "there"], [3]),
    ],
)
def test_an_option_knows_which_values_keep_its_rule(name, good, bad):
    [option] = [option for option in options(FedConfig) if option.name == name]
    assert [value for value in good if not option.allows(value)] == []
    assert [value for value in bad if option.allows(value)] == []


def test_derived_values():
    assert names_or_pattern("q_proj, v_proj") == ["q_proj", "v_proj"]
    assert names_or_pattern(FedConfig().target_modules) is None
    assert FedConfig(peft="p-tuning").virtual_tokens == 20
    assert FedConfig(peft="prompt-tuning").virtual_tokens == 40
    assert FedConfig(peft="p-tuning", num_virtual_tokens=7).virtual_tokens == 7


def test_flags_win_over_the_file_wherever_config_stands(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("client_num: 12\nlr: 1e-2\nquantize: none\nnum_virtual_tokens: none\n")
    first = parse_fed("--config", str(file), "--client_num", "8")
    last = parse_fed("--client_num", "8", "--config", str(file))
    assert first == last
    assert (first.client_num, first.lr, first.quantize) == (8, 1e-2, "none")
    # A flag wins also when it asks for the default.
    assert parse_fed("--client_num", "50", "--config", str(file)).client_num == 50


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("clientnum: 3", ["unknown option clientnum", "client_num?"]),
        ("client_num: five", ["client_num: five is not a whole number of at least 1"]),
        ("fed_alg: FedAvgg", ["fed_alg: FedAvgg", "did you mean FedAVG?"]),
        ("client_num:", ["client_num has no value", "a whole number"]),
        ("exp_name: 5", ["exp_name: 5 is not text"]),
        ("- client_num", ["option: value"]),
        ("client_num: 1\n  lr: 2: 3", ["line 2", "not YAML"]),
        ("config: other.yaml", ["config", "--config"]),
        ("client:\n  lr: 1", ["unknown option client"]),
        ("learning_rate: 1", ["unknown option learning_rate; did you mean lr?"]),
        ("lr: 1.0\nseed: 2026-02-31", ["line 2: seed: 2026-02-31 is not a whole number"]),
        ("lr: 1.0\nexp_name: [a, b]", ["line 2: exp_name: ['a', 'b'] is not text"]),
        ('lr: 1.0\nexp_name: "a\\ud83d"', ["line 2: exp_name: a\\ud83d will not do: a control character"]),
        ("lr: " + "9" * 350, ["line 1: lr: 99999", "(350 characters) is not a number above 0"]),
        ("3: 4", ["line 1: unknown option 3"]),
        ("model_name: " + TOKEN, ["line 1: model_name: (hidden) will not do"]),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path, content, parts):
    file = tmp_path / "my.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        parse_fed("--config", str(file))
    assert str(file) in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_day_needs_no_quotes_in_a_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("prompt_date: 2031-02-03\n")
    assert parse_fed("--config", str(path)).prompt_date == "2031-02-03"


def test_every_number_has_bounds_that_catch_the_absurd():
    classes = {command.config_class for command in COMMANDS.values()}
    numbers = {o.name: o for c in classes for o in options(c) if {int, float} & {*o.plain_types}}
    assert [name for name, o in numbers.items() if o.maximum is None and o.below is None] == []
    assert [name for name, o in numbers.items() if o.allows(10**30) or o.allows(1e300)] == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--client_batch_per_step", "1000000000"], "at least 1 and at most 100,000"),
        (["--lora_dropout", "0.9999999999"], "lora_dropout: 0.9999999999 is not a number of at least 0"),
        (["--client_num", "9" * 5000], "client_num: 99999"),
        (["--seed", "[" * 900], "seed: [[["),
        (["--seed", "2026-02-31"], "seed: 2026-02-31 is not a whole number"),
        (["--seed", "!!bool abc"], "seed: !!bool abc is not"),
        (["--lr", "1e999"], "lr: 1e999 is not a number above 0"),
        (["--lr", "1.2.3"], "lr: 1.2.3 is not a number"),
        (["--wave_tokens", "&a [*a]"], "wave_tokens: &a [*a] is not"),
        (["--exp_name", "x" * 256], "a name in it has 256 bytes, and 255 is the most"),
        (["--exp_name", "é" * 128], "a name in it has 256 bytes"),
        (["--out_dir", "a/" * 3000], "it has 6,000 bytes, and 4,095 is the most for a path"),
        (["--data_dir", "there/" + "x" * 300], "a name in it has 300 bytes"),
        (["--exp_name", "a\x1b[31m"], r"exp_name: a\x1b[31m will not do: a control character"),
        (["--model_name", "half \ud83d"], r"model_name: half \ud83d will not do"),
        (["--target_modules", "x" * 40_000], "it has 40,000 characters, and 32,768 is the most"),
        (["--model_name", TOKEN], "model_name: (hidden) will not do: a hub token stands in it"),
        (["--exp_name", f"run-{TOKEN}"], "exp_name: run-(hidden) will not do"),
        (["--token", "a\nb"], "token: (hidden) will not do: a control character"),
        (["--tokne", TOKEN], "unknown flag --tokne; did you mean --token?"),
        ([TOKEN], "these belong to no option: (hidden)"),
        (["--" + "x" * 5000], "unknown flag --xxx"),
    ],
)
def test_absurd_values_on_the_command_line(argv, said):
    with pytest.raises(UserError) as caught:
        parse_fed(*argv)
    assert said in str(caught.value) and len(str(caught.value)) < 400
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "argv", "meant"),
    [
        ("fed", "--lernrate 1", "--lr"),
        ("fed", "--lerning-rate=1", "--lr"),
        ("dfl", "--learning_rate 1", "--lr"),
        ("fed", "--client_learning_rate 1", "--client_lr"),
        ("dfl", "--client_learning_rate 1", "--lr"),
        ("fed", "--epochs 2", "--client_epoch"),
        ("dfl", "--num_train_epochs 2", "--local_epochs"),
        ("fed", "--batchsize 2", "--batch_size"),
        ("fed", "--random_seed 2", "--seed"),
        ("fed", "--output_dir x", "--out_dir"),
        ("merge", "--output_dir x", "--output_path"),
        ("report", "--output_dir x", "--output"),
        ("fed", "--model_name_or_path x", "--model_name"),
        ("dfl", "--model x", "--model_checkpoint"),
        ("demo", "--rouns 3", "--rounds"),
        ("fed", "--dtype bf16", "bfloat16"),
        ("fed", "--quantize nf4", "4bit"),
        ("fed", "--train_mode centralised", "local"),
        ("fed", "--partition dirichelt", "dirichlet"),
        ("split", "--partition non-iid", "dirichlet"),
        ("eval", "--split dev", "validation"),
    ],
)
def test_what_was_meant_is_asked_by_letters_and_by_what_others_call_it(command, argv, meant):
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        parse(COMMANDS[command].config_class, argv.split(), prog=f"fedloom {command}")


@pytest.mark.parametrize("argv", ["--num_epoch 2", "--lora_rank 2", "--xyz 1"])
def test_nothing_is_guessed_that_a_command_does_not_have(argv):
    with pytest.raises(UserError, match="unknown flag") as caught:
        parse(COMMANDS["merge"].config_class, argv.split(), prog="fedloom merge")
    assert "did you mean" not in str(caught.value)


def test_words_of_others_lead_to_options_that_there_are():
    names = {entry.name for command in COMMANDS.values() for entry in options(command.config_class)}
    assert set(" ".join(OPTIONS).split()) <= names


def test_a_round_of_absurd_length():
    with pytest.raises(UserError, match=r"50,000,000 examples in a round; 10,000,000 is the most"):
        check(FedConfig(train_mode="fed", client_batch_per_step=100_000, batch_size=125))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        parse_fed("--config", "nowhere.yaml")


def test_the_token_comes_from_the_flag_or_the_environment_and_is_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert parse_fed().token == "hf_environment"
    config = parse_fed("--token", "hf_flag")
    assert config.token == "hf_flag"
    assert "hf_" not in repr(config)
    help_shown = help_text(FedConfig, prog="fedloom fed", description="Fine-tune.")
    assert "hf_" not in help_shown
    for content in ("token: [hf_file]", "token: hf_file: x"):
        (tmp_path / "my.yaml").write_text(content)
        with pytest.raises(UserError) as caught:
            parse_fed("--config", str(tmp_path / "my.yaml"))
        assert "hf_file" not in str(caught.value)


def test_resume_takes_the_options_of_the_run_unless_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    # out_dir is where the run lay when it began; it may have moved since.
    (run / "config.yaml").write_text(
        "client_num: 7\nlr: 0.25\nexp_name: mine\nout_dir: elsewhere\nrun: {device: cpu}\n"
    )
    config = parse_fed("--exp_name", "mine", "--resume", "--lr", "0.5")
    assert (config.client_num, config.lr, config.resume) == (7, 0.5, True)
    assert (config.out_dir, config.exp_name) == ("runs", "mine")
    assert parse_fed("--exp_name", "mine").client_num == 50


@pytest.mark.parametrize(
    ("config_class", "option", "value"),
    [(FedConfig, "data_seed", 11), (DflConfig, "data_seed", 11), (DflConfig, "eval_peers", 150)],
)
def test_an_option_that_is_newer_than_a_run_has_the_value_of_what_was_done_then(
    config_class, option, value, tmp_path
):
    """The seed was that of the data too, and all peers were evaluated, however many."""
    (tmp_path / "config.yaml").write_text("seed: 11\nnum_clients: 150\nrun: {device: cpu}\n")
    assert read_options(tmp_path / "config.yaml", config_class)[option] == value
    (tmp_path / "mine.yaml").write_text("seed: 11\nnum_clients: 150\n")
    assert option not in read_options(tmp_path / "mine.yaml", config_class)


@pytest.mark.parametrize(
    ("options_", "message"),
    [
        ({"client_num": 0}, "client_num: 0 is not a whole number of at least 1"),
        ({"client_num": True}, "client_num: True is not a whole number"),
        ({"lora_dropout": 1.0}, "lora_dropout: 1.0 is not a number of at least 0 and at most 0.99"),
        ({"lora_dropout": -0.1}, "lora_dropout: -0.1 is not"),
        ({"lr": 0.0}, "lr: 0.0 is not a number above 0"),
        ({"client_lr": float("nan")}, "client_lr: nan is not a number above 0"),
        ({"lr": float("inf")}, "lr: inf is not a number above 0"),
        ({"prox_mu": -1.0}, "prox_mu: -1.0 is not a number of at least 0"),
        (
            {"wave_tokens": 0},
            "wave_tokens: 0 is not a whole number of at least 1 and at most 1,000,000,000, or auto",
        ),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens: 0 is not"),
        (
            {"client_num": 3, "client_num_per_step": 4},
            "client_num_per_step: 4 clients cannot be sampled from client_num 3",
        ),
        ({"device": "gpu"}, "device: gpu is not auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "did you mean cuda"),
        ({"exp_name": "../other"}, "not the name of one folder"),
        ({"exp_name": ""}, "not the name of one folder"),
        ({"target_modules": " , "}, "names no layer"),
        ({"train_mode": "fedGradFocus", "peft": "prompt-tuning"}, "there are no layers for fedGradFocus"),
        ({"server_data_fraction": 0.0}, "server_data_fraction: 0.0 is not a number above 0 and below 1"),
        ({"server_grad_scale": -1.0}, "server_grad_scale: -1.0 is not"),
        ({"server_batches": 0}, "server_batches: 0 is not"),
    ],
)
def test_check_gives_value_rule_and_fix(options_, message):
    with pytest.raises(UserError) as caught:
        check(FedConfig(**({"train_mode": "fed"} | options_)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options_",
    [
        {},
        {"client_num": 4},
        {"train_mode": "local", "client_num": 1},
        {"prox_mu": 0.0, "fed_alg": "FedProx", "clip_norm": 0.0, "patience": 0, "lora_dropout": 0.0},
        {"device": "cuda:1", "wave_tokens": 1, "target_modules": "q_proj"},
    ],
)
def test_check_lets_good_values_pass(options_):
    check(FedConfig(**({"train_mode": "fed"} | options_)))


def test_a_default_asks_for_no_more_clients_than_there_are(caplog, tmp_path):
    (tmp_path / "two.yaml").write_text("num_clients: 2\n")
    assert parse_fed("--config", str(tmp_path / "two.yaml")).client_num_per_step == 2
    assert FedConfig(client_num=2).client_num_per_step == 2
    assert caplog.messages == ["client_num_per_step: 2, all clients that there are; its default is 4"]
    assert FedConfig(client_num=4).client_num_per_step == FedConfig().client_num_per_step == 4
    assert FlowerConfig(client_num=1, train_mode="fed").client_num_per_step == 1
    with pytest.raises(UserError, match="4 clients cannot be sampled from client_num 2"):
        check(FedConfig(client_num=2, client_num_per_step=4))


def test_both_commands_take_the_names_of_both_original_systems(tmp_path):
    fed = parse_fed(
        "--num_clients", "9", "--num-rounds", "5", "--model_checkpoint", "m", "--local_steps", "3"
    )
    assert (fed.client_num, fed.max_steps, fed.model_name, fed.client_batch_per_step) == (9, 5, "m", 3)
    assert FedConfig(num_clients=9, lr=0.5).client_num == 9
    (tmp_path / "dfl.yaml").write_text("model_name: m\ndata_name: qnli\nclient_lr: 0.25\n")
    dfl = parse(DflConfig, ["--config", str(tmp_path / "dfl.yaml"), "--client_num", "3"], prog="fedloom dfl")
    assert (dfl.model_checkpoint, dfl.dataset_type, dfl.lr, dfl.num_clients) == ("m", "qnli", 0.25, 3)
    assert "--client_num, --num_clients INT" in help_text(FedConfig, prog="fedloom fed", description="F.")


def test_one_thing_has_one_value_whatever_its_names(tmp_path):
    with pytest.raises(UserError, match="num_clients: is another name of client_num, which is given too"):
        parse_fed("--num_clients", "9", "--client_num", "8")
    with pytest.raises(UserError, match="num_clients: is another name of client_num"):
        FedConfig(num_clients=9, client_num=9)
    (tmp_path / "twice.yaml").write_text("num_clients: 3\nclient_num: 4\n")
    with pytest.raises(UserError, match=r"twice\.yaml, line 2: client_num is another name"):
        parse_fed("--config", str(tmp_path / "twice.yaml"))
    assert parse_fed("--lr", "0.5", "--client_lr", "0.25").lr == 0.5, "of fed they are two things"
