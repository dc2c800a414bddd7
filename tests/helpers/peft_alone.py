"""One client trained with HF PEFT and torch.optim: what the stacked model is compared with."""

import copy

import torch
import torch.nn.functional as F
from peft import get_peft_model

from fedloom.model.adapters.supported import saved_name


def reference_loss(model, batches, classify, pad_id, virtual):
    """The mean over all labels of a step's batches. (HF's own would round float64 logits to float32.)"""
    sequences = [s for batch in batches for s in batch]
    longest = max(len(s.ids) for s in sequences)
    ids = torch.tensor([s.ids + [pad_id] * (longest - len(s.ids)) for s in sequences])
    mask = torch.tensor([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in sequences])
    logits = model(input_ids=ids, attention_mask=mask).logits
    if classify:
        labels = torch.tensor([s.label for s in sequences])
    else:
        logits, labels = logits[:, virtual:-1], torch.full_like(ids, -100)
        for row, s in enumerate(sequences):
            for first, end in s.spans:
                labels[row, first:end] = ids[row, first:end]
        labels = labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def train_alone(base, config, steps, make_optimiser, clip_norm=0.0, of_model=False):
    """One client with HF PEFT and torch.optim; returns its adapter after and before, and its losses.

    The optimiser is made of the list of parameters that train, or of the model.
    """
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).to(base.dtype).eval()
    named = {saved_name(n, config): p for n, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in named.items()}
    optimiser = make_optimiser(model if of_model else list(named.values()))
    virtual = getattr(config, "num_virtual_tokens", 0)
    classify, losses = config.task_type == "SEQ_CLS", []
    for batches in steps:
        optimiser.zero_grad()
        loss = reference_loss(model, batches, classify, base.config.pad_token_id, virtual)
        loss.backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(list(named.values()), clip_norm)
        optimiser.step()
        losses.append(loss.item())
    return {name: p.detach() for name, p in named.items()}, before, losses
