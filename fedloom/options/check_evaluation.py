"""Judge the options of `fedloom eval`, before anything heavy is loaded; see `fedloom.options.check_fed`."""

from fedloom.errors import UserError
from fedloom.options.check_fed import check_device, check_prompts, check_rules
from fedloom.options.evaluation import EvalConfig
from fedloom.options.own_data import check_own_data
from fedloom.options.run import PROMPT_DATE


def check(config: EvalConfig) -> None:
    """Judge the options, each for itself and together.

    Raises:
        UserError: A value breaks its rule, or two options contradict each other.
    """
    check_rules(config)
    check_device(config.device)
    check_own_data(config)
    check_prompts(config.prompt_format or "auto", config.prompt_date or PROMPT_DATE)
    for one, other in (("model_name", "model_checkpoint"), ("data_name", "dataset_type")):
        first, second = getattr(config, one), getattr(config, other)
        if first and second and first != second:
            raise UserError(
                f"{other}: {second} is another name of {one}, which is {first}; give one of the two"
            )
    if config.adapter is not None and not config.adapter_paths:
        raise UserError(f"adapter: {config.adapter!r} names no folder; give folders with commas between")
    if config.all_checkpoints and not config.adapter_paths:
        raise UserError("all_checkpoints: needs --adapter with a run's folder")
    if not config.adapter_paths:
        for name, value in (("model_name", config.model), ("data_name", config.task)):
            if value is None:
                raise UserError(f"{name}: is required where no --adapter of a run says which")
