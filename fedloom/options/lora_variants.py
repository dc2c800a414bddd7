"""Options of LoRA's variants, rsLoRA and LoRA+; `options.synonyms` says why others are none."""

from dataclasses import dataclass
from typing import Any

from fedloom.errors import UserError
from fedloom.options.declare import option


@dataclass(frozen=True, kw_only=True)
class LoraVariants:
    """LoRA's variants."""

    use_rslora: bool = option(
        False, "rsLoRA: the scale is lora_alpha / sqrt(lora_r), which falls less with the rank"
    )
    loraplus_lr_ratio: float = option(
        1.0,
        "LoRA+: LoRA's B learns so many times as fast as all else; 1 is LoRA, the paper takes 16",
        above=0,
        maximum=1e6,
    )


def check_lora_variants(config: Any) -> None:
    """Judge what a variant of LoRA is asked for beside.

    Raises:
        UserError: It is no LoRA.
    """
    for name, value, default in (
        ("use_rslora", config.use_rslora, False),
        ("loraplus_lr_ratio", config.loraplus_lr_ratio, 1),
    ):
        if value != default and config.peft != "lora":
            raise UserError(
                f"{name}: {value} is about LoRA, and peft is {config.peft}; leave it out, or choose --peft "
                "lora"
            )
