"""What crosses between processes whose adapters lie on a GPU."""

from itertools import combinations

import numpy as np
import pytest
import torch
from pretend_gpu import CUDA, a_gpu

from fedloom.federation.matrix import RoundMixing
from fedloom.federation.plugged import made
from fedloom.options.methods import PARTS
from fedloom.options.parts import choices
from fedloom.runtimes.gathering import payloads_heard

(COMPRESS,) = (part for part in PARTS if part.option == "compress")
ROW = {"m.lora_A.weight": torch.arange(12.0).view(2, 6), "m.lora_B.weight": torch.arange(8.0).view(4, 2)}


class Both:
    """Rank 0 of two, where the other sends what it is sent."""

    size, rank, device = 2, 0, CUDA

    def exchange(self, outgoing, incoming):
        for rank, t in incoming.items():
            t.copy_(outgoing[rank])


@pytest.mark.parametrize("name", choices(COMPRESS))
def test_a_payload_goes_from_rank_to_rank(name):
    codec = made(COMPRESS, name, {})
    edges = np.array(list(combinations(range(2), 2)))
    mixing = RoundMixing(edges, np.full(1, 0.5), np.ones(2, dtype=bool))
    with a_gpu():
        row = {key: t.to(CUDA) for key, t in ROW.items()}
        payload = codec.encode(row, 5)
        heard = payloads_heard(Both(), [range(1), range(1, 2)], {(0, 1): payload}, mixing, payload)
        found, wanted = codec.decode(heard[1, 0], row), codec.decode(payload, row)
        for key, t in wanted.items():
            assert found[key].device == t.device == CUDA
            assert torch.equal(found[key], t)
