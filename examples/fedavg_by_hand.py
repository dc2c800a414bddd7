"""FedAvg by hand: four clients, one frozen model, and the algebra of a round.

    python examples/fedavg_by_hand.py

A tiny Llama with random weights reads calculations such as `11 + 8 =` byte by byte; nothing is downloaded.
In a round every client trains its own LoRA adapter, a row of one bank, all in the same passes. FedAvg
(McMahan et al., 2017) is then a weighted mean over the bank's first axis.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedloom import AdapterBank, LocalRules, StackedModel, Tokens, lora, mean_step, sgd, train_locally
from fedloom.data.arithmetic import generate

SIZES = (4, 8, 12, 16)  # examples per client: a client with more of them counts for more
BATCH, ROUNDS, CLIENT_LR = 4, 8, 0.2


def tiny_model() -> StackedModel:
    """A frozen Llama whose tokens are bytes, with LoRA for many clients on its linear layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    return StackedModel(base, lora(base, r=8, alpha=16, dropout=0.0, target_modules=["all-linear"]), seed=0)


def client_data() -> list[list[Tokens]]:
    """Each client's calculations; the loss counts the result only."""
    sequences = []
    for problem in generate(sum(SIZES), seed=0, steps=(1,)):
        calculation, equals, result = problem.answer.rpartition("=")
        question, answer = f"{calculation}{equals}".encode(), f"{result}\n".encode()
        sequences.append(Tokens([*question, *answer], answer_start=len(question), label=-1))
    starts = [sum(SIZES[:client]) for client in range(len(SIZES))]
    return [sequences[start : start + size] for start, size in zip(starts, SIZES, strict=True)]


def by_hand(bank: AdapterBank) -> dict[str, torch.Tensor]:
    """Σ n_k w_k / Σ n_k, term by term."""
    mean = {name: torch.zeros_like(t) for name, t in bank.row(0).items()}
    for client, n in enumerate(SIZES):
        for name, t in bank.row(client).items():
            mean[name] += n * t / sum(SIZES)
    return mean


def fedavg() -> list[dict[str, float]]:
    """All rounds: the clients' loss, and how far `bank.mean` is from the mean by hand."""
    model, data = tiny_model(), client_data()
    # A client's work is a list of optimiser steps; clients may have different numbers of them.
    work = [
        [mean_step([own[i : i + BATCH]], model.layout, keys=[(client, i)]) for i in range(0, len(own), BATCH)]
        for client, own in enumerate(data)
    ]
    weights = torch.tensor(SIZES, dtype=torch.float32)
    server, rounds = model.initial, []
    for _ in range(ROUNDS):
        start = AdapterBank.repeat(server, len(SIZES))  # everybody gets the server's adapter
        trained = train_locally(model, start, work, LocalRules(sgd(CLIENT_LR)))
        server = trained.bank.mean(weights)
        expected = by_hand(trained.bank)
        rounds.append(
            {
                "loss": float((trained.loss * weights).sum() / weights.sum()),
                "off": max(float((server[name] - expected[name]).abs().max()) for name in server),
                "moved": float(trained.bank.map(lambda after, before: after - before, start).norms().max()),
            }
        )
    return rounds


def main() -> None:
    """Print a table."""
    print("round    loss   furthest client moved   bank.mean − mean by hand")
    for number, row in enumerate(fedavg(), start=1):
        print(f"{number:5}  {row['loss']:6.4f}   {row['moved']:21.4f}   {row['off']:24.1e}")


if __name__ == "__main__":
    main()
