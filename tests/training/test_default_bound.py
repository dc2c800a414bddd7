"""What one real client or peer can do is bounded, unless that is turned off or the mean is needed."""

import pytest

from fedloom.options.flower import FlowerConfig
from fedloom.options.peer import PeerConfig
from fedloom.training.default_bound import bounded
from fedloom.training.peer import agreed_options

FED = {"train_mode": "fed"}
NOISE = {"clip": 0.1, "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("config", "aggregator", "said"),
    [
        (FlowerConfig(), "norm_bound", "twice the median one"),  # with gradient priority
        (FlowerConfig(method="FedAdam"), "norm_bound", "--aggregator mean turns it off"),
        (FlowerConfig(method="SCAFFOLD", compress="int8"), "norm_bound", "twice the median"),
        (FlowerConfig(method="FedSA-LoRA"), "norm_bound", "twice the median"),
        (FlowerConfig(**FED, lora_r="4,8"), "norm_bound", "twice the median"),
        (FlowerConfig(method="FedEx-LoRA"), "mean", "lora_aggregation: fedex"),
        (FlowerConfig(method="FLoRA"), "mean", "lora_aggregation: flora"),
        (FlowerConfig(method="FlexLoRA"), "mean", "flexlora averages products"),
        (FlowerConfig(**FED, aggregator="mean"), "mean", ""),
        (FlowerConfig(method="Median"), "median", ""),
        (FlowerConfig(**FED, privacy="user", **NOISE), "mean", "privacy user clips every client"),
        (FlowerConfig(**FED, privacy="example", **NOISE), "norm_bound", "twice the median"),
        (FlowerConfig(**FED, secure_aggregation=1.0), "mean", "secure aggregation shows the server nobody's"),
        (PeerConfig(), "norm_bound", "twice the median"),
        (PeerConfig(method="D-PSGD"), "norm_bound", "twice the median"),
        (PeerConfig(method="FedSA-LoRA"), "norm_bound", "twice the median"),
        (PeerConfig(method="CHOCO-SGD"), "mean", "compressed gossip rests on the mean"),
        (PeerConfig(method="K-GT"), "mean", "gradient_tracking is about the mean"),
        (PeerConfig(method="FlexLoRA"), "mean", "flexlora averages products"),
        (PeerConfig(method="Ravan"), "mean", "ravan averages products"),
        (PeerConfig(method="FedEx-LoRA", residual_rank=4), "mean", "fedex averages factors and products"),
        (PeerConfig(aggregator="mean"), "mean", ""),
    ],
)
def test_the_aggregator_that_auto_turns_out_to_be(config, aggregator, said):
    found, line = bounded(config)
    assert found.aggregator == aggregator
    assert said in line and bool(line) == bool(said) and "\n" not in line
    if isinstance(config, FlowerConfig):
        assert found.of_the_run.aggregator == aggregator
    assert bounded(found) == (found, ""), "what was written down is taken as it is"


def test_a_peer_that_turns_the_bound_off_does_not_agree_with_one_that_has_it():
    plain, bound = bounded(PeerConfig(aggregator="mean"))[0], bounded(PeerConfig())[0]
    assert agreed_options(plain) != agreed_options(bound)
