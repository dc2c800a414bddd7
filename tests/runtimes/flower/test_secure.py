"""Secure aggregation: the server learns the sum, also where clients drop out, and clients refuse all else."""

from importlib.util import find_spec

import pytest
from run_files import adapter, rows, write_rows

if find_spec("flwr") is None:
    pytest.skip("flwr is not installed", allow_module_level=True)

import torch
from flower_hand import Hand, nodes, serve, written
from tiny import save_tiny_llama

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.federation.secure_sum import Counts, SecureSum, summed
from fedloom.runtimes.flower import masks
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.messages import from_records
from fedloom.runtimes.flower.request import Request
from fedloom.runtimes.flower.rows import Unfit
from fedloom.training.flower.run_config import from_run_config
from fedloom.training.flower.secrets import secret_step

LIKE = {"b": torch.zeros(3, 4), "a": torch.zeros(5)}
SECURE = SecureSum(1.0, 5, 64, 16)  # two bytes wrap around where four do


def payloads(count):
    torch.manual_seed(0)
    return [
        SECURE.encode(
            {name: 0.1 * torch.randn_like(t) for name, t in LIKE.items()}, Counts(1, 9 + k, k, 10, 99, 1.5), k
        )
        for k in range(count)
    ]


def played(count, gone=(), late=()):
    """A round of clients of whom some drop out after they have shared, and some before they have."""
    kept, public, sealed = {}, {}, {}
    for k in range(count):
        kept[k], said = masks.begin()
        public[str(k)] = said["public"]
    sharing = [k for k in range(count) if k not in late]
    for k in sharing:
        kept[k], said = masks.share(kept[k], k, public)
        sealed[k] = said["sealed"]
    there = [k for k in sharing if k not in gone]
    sent = payloads(count)
    hidden = {k: masks.masked(kept[k], k, sent[k], [str(j) for j in sharing if j != k]) for k in there}
    names = [[str(k) for k in some] for some in (there, [k for k in sharing if k in gone])]
    arrived = {k: {str(j): sealed[j][str(k)] for j in sharing if j != k} for k in there}
    shares = [masks.reveal(kept[k], k, arrived[k], *names)["shares"] for k in there]
    return sent, hidden, masks.unmasked(summed(list(hidden.values())), public, *names, shares), kept, arrived


@pytest.mark.parametrize(
    ("count", "gone", "late"), [(3, (), ()), (3, (1,), ()), (5, (0, 4), ()), (5, (3,), (1,)), (5, (), (0, 2))]
)
def test_the_sum_of_those_who_are_there_comes_out_to_the_bit(count, gone, late):
    sent, hidden, total, _, _ = played(count, gone, late)
    wanted = summed([sent[k] for k in range(count) if k not in (*gone, *late)])
    assert all(torch.equal(total[name], t) for name, t in wanted.items())
    for k, masked in hidden.items():
        assert not any(torch.equal(masked[name], t) for name, t in sent[k].items())


def test_a_client_refuses_what_would_unmask_one():
    _, _, _, kept, arrived = played(3)
    for there, gone in ((["0", "1"], ["1"]), (["1", "2"], ["0"]), (["0"], ["1", "2"])):
        with pytest.raises(Unfit):
            masks.reveal(kept[0], 0, arrived[0], there, gone)
    with pytest.raises(Unfit, match="too few"):
        masks.share(kept[0], 0, {str(k): kept[k]["public"][str(k)] for k in (0, 1)})
    others = {str(k): kept[k]["public"][str(k)] for k in range(3)}
    with pytest.raises(Unfit, match="not one of this round"):
        masks.share(kept[0], 0, {**others, "0": others["1"]})


def test_a_share_that_cannot_be_opened_is_said_whose_it_is():
    _, _, _, kept, arrived = played(3)
    for spoiled in ("x" * 80, masks.encrypt(b"A" * 43 + b"=", b"0 1").decode()):
        with pytest.raises(Unfit, match="the share of client 2 cannot be opened"):
            masks.reveal(kept[0], 0, {**arrived[0], "1": spoiled}, ["0", "1", "2"], [])


def test_masks_are_as_random_as_their_range():
    zeros = {"numbers": torch.zeros(4000, dtype=torch.int32)}
    masks._add(zeros, bytes(range(32)), 1)
    drawn = zeros["numbers"].double() / 2**31
    assert drawn.mean().abs() < 0.05 and abs(drawn.std().item() - 3**-0.5) < 0.02


# --- with the real clients of a run


RUN = """
    --data_name ChilleD/MultiArith --client_num 4 --client_num_per_step 4 --client_batch_per_step 2
    --client_lr 0.05 --lr 0.05 --lora_r 4 --max_steps 2 --val_steps 1 --patience 0 --dtype float32
    --train_mode fed --fed_alg FedAVG --report_to none --secure_aggregation 1 --wave_tokens 2000
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "llama")
    for part, count in (("train", 30), ("validation", 6), ("test", 4)):
        pears = [{"question": f"{i} pears and {i % 7} {part[0]}?", "final_ans": 2 * i} for i in range(count)]
        write_rows(folder / f"{part}.jsonl", pears)
    return ["--model_name", str(folder / "llama"), "--data_dir", str(folder), *RUN.split()]


@pytest.fixture
def flower(words, tmp_path):
    def run(spoil=lambda node, reply: reply, *options):
        more = [*options, "--round_timeout", "2", "--join_timeout", "2", "--min_clients", "3"]
        run_config = written(tmp_path / "app", *words, *more, "--out_dir", str(tmp_path / "flower"))
        serve(Hand(run_config, nodes(4), spoil), run_config)
        return tmp_path / "flower" / "test"

    return run


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--compress int8",
        "--privacy user --clip 0.2 --noise_multiplier 0.5 --privacy_seed 2 --compress int8",
    ],
)
def test_what_comes_out_is_what_one_process_adds_up(words, flower, tmp_path, options):
    answers, options = [], options.split()

    def spoil(node, reply):
        answers.append(from_records(reply.content).facts)
        return reply

    folder = flower(spoil, *options)
    assert main(["fed", *words, *options, "--out_dir", str(tmp_path / "alone")]) == 0
    alone = tmp_path / "alone" / "test"
    assert all(torch.equal(adapter(folder)[name], t) for name, t in adapter(alone).items())
    for mine, other in zip(rows(folder)[1:], rows(alone)[1:], strict=True):
        if "--privacy" in options:
            assert mine["epsilon"] == other["epsilon"] > 0
        else:
            assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
        for name in {"clients", "tokens", "train_accuracy"} & other.keys():
            assert mine[name] == other[name]
        size = sum(t.numel() for t in adapter(alone).values())
        assert other["bytes_up"] == 4 * ((2 if "int8" in options else 4) * size + 6 * 8)
    assert not any({"loss", "examples", "correct", "tokens"} & facts.keys() for facts in answers)


def test_a_client_that_drops_out_in_the_middle_costs_its_change_alone(words, flower, tmp_path):
    """The second client shares its secrets and then sends nothing in the first round."""
    seen = []

    def spoil(node, reply):
        if node == 12:
            seen.append(from_records(reply.content).facts.keys())
            if len([facts for facts in seen if "round" in facts]) == 1 and "round" in seen[-1]:
                return None
        return reply

    folder = flower(spoil)
    first, second = rows(folder)[1:]
    assert first["clients_lost"] == [1] and first["tokens"] > 0
    assert second["clients_lost"] == [] and second["train_loss"] == second["train_loss"]


def test_a_round_with_too_few_left_ends_the_run_with_a_message(flower):
    def spoil(node, reply):
        return None if node > 12 and "round" in from_records(reply.content).facts else reply

    with pytest.raises(UserError, match="secure_aggregation: 2 clients are left in the round, and 3 are"):
        flower(spoil)


def test_a_client_that_insists_is_in_no_sum_of_fewer_than_three(words, tmp_path):
    """With user-level privacy a round may have one client; this one plays alone if its owner lets it."""
    private = ["--privacy", "user", "--clip", "1", "--noise_multiplier", "1"]
    config = from_run_config(written(tmp_path / "app", *words, *private))
    kept, said = masks.begin()
    content_ = Content({"stage": "shares", "secret": "w", "public": {"0": said["public"]}})
    held = Content({"secrets": {**kept, "secret": "w", "next": "shares"}})
    answer = secret_step(Request("train", {}, {}, content_, held), 0, config)
    assert answer.content_.facts["sealed"] == {}
    insisting = Request("train", {}, {"secure-aggregation": "required"}, content_, held)
    with pytest.raises(Unfit, match="too few"):
        secret_step(insisting, 0, config)


def test_a_client_may_insist(words, tmp_path):
    without = ["--secure_aggregation", "none", "--join_timeout", "1", "--out_dir", str(tmp_path / "runs")]
    run_config = written(tmp_path / "app", *words, *without)
    configs = [{**node, "secure-aggregation": "required"} for node in nodes(4)]
    with pytest.raises(UserError, match="takes part in secure aggregation alone"):
        serve(Hand(run_config, configs), run_config)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--client_num_per_step 2", "it takes 3 or more"),
        ("--aggregator median", "looks at clients' changes one by one"),
        ("--compress int4", "sends something else than whole numbers"),
        (
            "--compress int8 --client_num 128 --client_num_per_step 128",
            "each of 128 clients fewer steps",
        ),
        (
            "--method SCAFFOLD",
            "beside their change, or how many came, which secure aggregation would not hide",
        ),
        ("--lora_r 4,8", "gives clients ranks of their own"),
    ],
)
def test_what_needs_single_changes_is_refused(words, tmp_path, capsys, more, message):
    assert main(["fed", *words, *more.split(), "--out_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
