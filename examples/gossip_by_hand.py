"""Gossip by hand: four peers on a ring, no server, and why DFL-LoRA freezes A.

    python examples/gossip_by_hand.py

A tiny Llama with random weights reads calculations such as `11 + 8 =` byte by byte; nothing is downloaded.
Every peer has calculations of one operation only. After local training, mixing is `W @ bank`. LoRA's term is
a product B A: with both factors mixed, the mixed product is not the mean of the products; with one A for all
it is.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedloom import (
    AdapterBank,
    LocalRules,
    StackedModel,
    Tokens,
    adam,
    build_topology,
    consensus,
    lora,
    mean_step,
    mixing,
    train_locally,
)
from fedloom.data.arithmetic import SIGNS, generate

PEERS, EXAMPLES, ROUNDS = len(SIGNS), 12, 6


def tiny_model() -> StackedModel:
    """A frozen Llama whose tokens are bytes, with LoRA for many peers on its linear layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=256, initializer_range=0.2, **sizes)).requires_grad_(False)
    return StackedModel(base, lora(base, r=4, alpha=8, dropout=0.0, target_modules=["all-linear"]), seed=0)


def peer_data() -> list[list[Tokens]]:
    """Calculations of one operation for each peer; the loss counts the result only."""
    data: dict[str, list[Tokens]] = {operation: [] for operation in SIGNS}
    for problem in generate(8 * EXAMPLES, seed=0, steps=(1,)):
        calculation, equals, result = problem.answer.rpartition("=")
        question, answer = f"{calculation}{equals}".encode(), f"{result}\n".encode()
        data[problem.label].append(Tokens([*question, *answer], answer_start=len(question), label=-1))
    return [own[:EXAMPLES] for own in data.values()]


def products(bank: AdapterBank, frozen: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """Every peer's B A of one module, ``[peers, d_out, d_in]``, in float64."""
    everyone = bank.tensors | {name: t.expand(PEERS, *t.shape) for name, t in frozen.items()}
    a, b = (everyone[f"{module}.lora_{factor}.weight"].double() for factor in "AB")
    return b @ a


def gossip(freeze_a: bool) -> list[dict[str, float]]:
    """All rounds: loss, consensus error, and what mixing did to the mean and to the products."""
    model, data = tiny_model(), peer_data()
    modules = [projection.name for layer in model.adapted.values() for projection in layer]
    # What nobody trains stays outside the bank: with DFL-LoRA that is A, the same for all.
    frozen = {name: t for name, t in model.initial.items() if freeze_a and ".lora_A." in name}
    own = {name: t for name, t in model.initial.items() if name not in frozen}
    bank, rules = AdapterBank.repeat(own, PEERS), LocalRules(adam(5e-3))
    state = rules.optimiser.init(bank)  # a peer's moments are its own and last across rounds
    work = [[mean_step([sequences], model.layout, keys=[(peer,)])] * 3 for peer, sequences in enumerate(data)]
    w = mixing(build_topology("ring", PEERS, seed=0), round_number=0, seed=0).tensor()
    rounds = []
    for _ in range(ROUNDS):
        trained = train_locally(model, bank, work, rules, state, frozen)
        bank, state = w @ trained.bank, trained.state
        wanted = [torch.einsum("ij,jab->iab", w, products(trained.bank, frozen, m)) for m in modules]
        inexact = [
            (products(bank, frozen, m) - p).norm() / p.norm() for m, p in zip(modules, wanted, strict=True)
        ]
        before, after = (b.mean(torch.ones(PEERS)) for b in (trained.bank, bank))
        rounds.append(
            {
                "loss": float(trained.loss.mean()),
                "consensus": consensus(bank, frozen, modules).error,
                "inexact": float(max(inexact)),
                "mean moved": max(float((after[name] - before[name]).abs().max()) for name in before),
            }
        )
    return rounds


def main() -> None:
    """Print a table for LoRA and one for DFL-LoRA."""
    for name, freeze_a in (("LoRA: A and B are trained and mixed", False), ("DFL-LoRA: A is frozen", True)):
        print(f"{name}\nround    loss   consensus error   mixed product − mean of products   mean moved")
        for number, row in enumerate(gossip(freeze_a), start=1):
            apart, inexact, moved = row["consensus"], row["inexact"], row["mean moved"]
            print(f"{number:5}  {row['loss']:6.4f}   {apart:15.4f}   {inexact:32.1e}   {moved:10.1e}")


if __name__ == "__main__":
    main()
