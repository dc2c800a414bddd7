"""What a user may have meant: words that other tools have for our options and for their values.

Letters alone lead astray: of our flags `--server_batches` is the one most like `--lernrate`.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from fedloom.errors import shown

OPTIONS: dict[str, str] = {
    # Ours, the first of them that a command has: what others call it.
    "lr": "learning_rate lernrate learnrate eta step_size stepsize server_lr server_learning_rate global_lr",
    "client_lr lr": "client_learning_rate local_lr local_learning_rate",
    "client_epoch local_epochs": "epochs epoch num_epochs num_train_epochs n_epochs max_epochs client_epochs",
    "client_batch_per_step local_steps": "steps_per_round local_iterations batches_per_round",
    "batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size micro_batch_size "
    "per_device_eval_batch_size eval_batch_size",
    "grad_accum_steps": "gradient_accumulation_steps gradient_accumulation accumulate_grad_batches",
    "clip_norm": "max_grad_norm grad_clip gradient_clip gradient_clip_val clip_grad grad_norm",
    "max_steps num_rounds rounds": "rounds round num_server_rounds n_rounds global_rounds comm_round "
    "communication_rounds steps iterations max_iters num_steps train_steps",
    "client_num num_clients": "clients n_clients num_peers peers n_peers num_nodes nodes num_users workers "
    "total_clients number_of_clients",
    "client_num_per_step": "clients_per_round num_clients_per_round sample_clients participants cohort_size "
    "fraction_fit participation_rate client_fraction",
    "seed data_seed": "random_seed random_state rng_seed manual_seed",
    "output_path out_dir output": "output_dir output_folder save_dir save_path save_to output_file "
    "logging_dir log_dir",
    "exp_name": "run_name experiment experiment_name name run_id",
    "config": "config_file config_path cfg yaml",
    "resume": "resume_from_checkpoint continue restart",
    "model_name model_checkpoint": "model model_name_or_path base_model model_id model_path model_dir "
    "pretrained_model pretrained llm checkpoint",
    "adapter": "adapter_path adapter_name_or_path peft_model lora_path lora_weights run checkpoint",
    "data_name dataset_type": "dataset data dataset_name dataset_path data_path train_data train_file "
    "data_files data_file task",
    "data_dir": "dataset_dir data_folder datadir",
    "lora_r": "rank r lora_rank lora_dim",
    "lora_alpha": "lora_scale lora_scaling",
    "lora_dropout": "dropout dropout_rate dropout_prob",
    "target_modules": "lora_target_modules lora_target modules target_layers",
    "max_length": "max_seq_length max_seq_len max_len seq_len seq_length sequence_length cutoff_len "
    "model_max_length block_size context_length",
    "max_new_tokens": "max_tokens max_output_tokens num_predict max_gen_len",
    "method fed_alg": "algorithm algo alg strategy fl_algorithm federated_algorithm aggregation",
    "client_optimizer server_optimizer": "optimizer optim optimiser client_optimiser",
    "server_optimizer": "server_optimiser server_opt",
    "prox_mu": "mu proximal_mu fedprox_mu",
    "dpo_beta": "beta",
    "partition": "split_type heterogeneity non_iid noniid iid data_split distribution",
    "alpha": "dirichlet_alpha concentration dir_alpha",
    "name": "topology graph network graph_type",
    "compress": "compression compressor codec sparsify",
    "dtype": "precision torch_dtype fp16 bf16 half mixed_precision",
    "quantize": "load_in_4bit load_in_8bit quantization bits quantization_bit",
    "device": "gpu cuda cpu device_map gpus",
    "token": "hf_token hub_token use_auth_token api_key auth_token",
    "report_to": "logger log_with wandb tensorboard mlflow tracker",
    "val_steps eval_every": "eval_steps eval_interval val_interval validate_every val_every eval_frequency "
    "test_every",
    "save_every": "save_steps checkpoint_every save_interval",
    "patience": "early_stopping early_stopping_patience early_stop",
    "limit val_limit": "max_samples num_samples n_samples max_eval_samples eval_limit max_examples",
    "system_prompt": "prompt system system_message instruction",
    "prompt_format": "template chat_template prompt_template",
    "push_to_hub": "hub_model_id repo_id upload",
    "max_layer_num": "top_layers num_layers layers",
    "plugin": "plugins extension custom",
}

_VALUES: dict[str, str] = {
    "float16": "fp16 half f16",
    "bfloat16": "bf16",
    "float32": "fp32 f32 float full single",
    "4bit": "4 nf4 int4 fp4 q4 true",
    "8bit": "8 int8 q8",
    "local": "central centralized centralised central_training single",
    "fed": "federated federation fedavg",
    "dirichlet": "noniid non_iid non-iid label_skew heterogeneous",
    "iid": "uniform random even homogeneous",
    "by_field": "natural field group",
    "validation": "val valid dev eval",
    "train": "training",
    "test": "testing",
    "lora": "qlora peft",
    "p-tuning": "ptuning p_tuning ptune",
    "prompt-tuning": "soft_prompt prompt_tuning prompt",
    "question_answer": "qa",
    "preference": "dpo preferences",
    "messages": "chat chatml openai conversational",
    "classification": "labels classify",
    "last": "top",
}


_OTHER_ADAPTERS = {
    "rslora": "is --peft lora with --use_rslora true",
    "lora+": "is --peft lora with --loraplus_lr_ratio 16",
    "loraplus": "is --peft lora with --loraplus_lr_ratio 16",
    "dora": "does not run: DoRA divides by the norms of each client's whole weights, W0 + s B A, in every "
    "layer and step, and the pass that clients share never makes them; choose --peft lora",
    "vera": "does not run: VeRA trains vectors beside one random pair of factors for all layers, and the "
    "layers that clients share have LoRA's two factors alone; choose --peft lora",
    "ia3": "does not run: (IA)3 trains vectors that rescale activations, and the layers that clients share "
    "have LoRA's two factors alone; choose --peft lora",
}


def why_not(option: str, value: object) -> str:
    """Why a value that users may well ask for is none of an option's, and what to choose; or nothing."""
    plain = str(value).lower().translate(str.maketrans("", "", "()"))
    return _OTHER_ADAPTERS.get(plain, "") if option == "peft" else ""


COMMANDS = {
    other: ours
    for ours, others in {
        "fed": "train run finetune fine-tune federated server start",
        "dfl": "gossip decentralized decentralised dfl-lora",
        "peer": "node p2p client",
        "eval": "evaluate test judge score",
        "chat": "generate talk ask infer inference",
        "merge": "export convert",
        "split": "partition divide",
        "topology": "graph network",
        "audit-privacy": "privacy canaries canary audit_privacy membership",
        "report": "plot page show",
        "compare": "sweep grid benchmark",
        "methods": "list algorithms",
        "identity": "key keygen",
    }.items()
    for other in others.split()
}
"""What others call commands, and which of ours each is."""

DEVICES = {
    "gpu": "cuda",
    "gpu:0": "cuda:0",
    "gpu0": "cuda:0",
    "0": "cuda:0",
    "nvidia": "cuda",
    "gpu:1": "cuda:1",
}
"""The same of devices."""


def of_others(among: Collection[str]) -> dict[str, str]:
    """What other tools call options, and which option of a command each is.

    Args:
        among: The command's own names.
    """
    return {
        other: next(name for name in ours.split() if name in among)
        for ours, others in reversed(OPTIONS.items())
        for other in others.split()
        if other not in among and any(name in among for name in ours.split())
    }


def values_of_others(choices: Collection[str]) -> dict[str, str]:
    """What other tools call values of options, and which of the choices each is."""
    return {
        other: ours
        for ours, others in reversed(_VALUES.items())
        if ours in choices
        for other in others.split()
        if other not in choices
    }


def did_you_mean(
    value: object, names: Iterable[str], cutoff: float = 0.5, others: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return `; did you mean NAME?` for the name nearest to `value`, or nothing when none is near.

    Args:
        value: What was given.
        names: Those that there are.
        cutoff: How near is near, from 0 to 1.
        others: Words that other tools have, and the name that each stands for; see above.
    """
    word = shown(value).lower()
    # So near only that a slip of the keyboard lies between: most of these words are like no name of ours.
    stands_for = {other: others[other] for other in difflib.get_close_matches(word, others, 1, 0.8)}
    by_lower = {**stands_for, **{name.lower(): name for name in reversed(list(names))}}
    near = difflib.get_close_matches(word, by_lower, 1, cutoff)
    return f"; did you mean {shown(by_lower[near[0]])}?" if near else ""


def path_meant(path: Path) -> str:
    """As `did_you_mean`, for a path where nothing is: what is called so beside it."""
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, 1)
    return f"; did you mean {shown(near[0])}?" if near else ""
