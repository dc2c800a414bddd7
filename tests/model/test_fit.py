"""Token ids beyond the embedding and texts beyond the positions are told before weights are read."""

import json

import pytest
from tiny import (
    save_tiny_bert,
    save_tiny_llama,
    tiny_bloom,
    tiny_gpt2,
    tiny_llama,
    tiny_roberta,
    tiny_tokenizer,
)

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.evaluation.answering import Questions, within_room
from fedloom.model.base import load_base
from fedloom.model.fit import check_fit
from fedloom.model.structure import positions_of, size


def fits(model, texts, virtual=0):
    model.name_or_path = "mine"
    check_fit(model, tiny_tokenizer(), texts, max_length=512, virtual=virtual)


def test_what_counts_is_what_the_data_hold():
    fits(tiny_gpt2(n_positions=16), [[1] * 16, [99]])


def test_a_token_without_a_row_is_named():
    with pytest.raises(UserError, match=r"the tokenizer has 320 tokens and the model 100 rows.* token 319"):
        fits(tiny_llama(vocab_size=100), [[5, 6], [7, 319]])


@pytest.mark.parametrize(
    ("make", "virtual", "words"),
    [
        (
            lambda: tiny_gpt2(n_positions=16),
            0,
            "max_length: 512 is more than the model's 16 .*--max_length 16",
        ),
        (lambda: tiny_gpt2(n_positions=20), 4, "20 positions beside 4 virtual ones.* --max_length 16"),
        # Its first two positions are never used.
        (lambda: tiny_roberta(max_position_embeddings=18), 0, "16 positions.*--max_length 16"),
    ],
)
def test_a_text_beyond_a_table_of_positions_is_an_error(make, virtual, words):
    fits(make(), [[1] * 16], virtual)
    with pytest.raises(UserError, match=words):
        fits(make(), [[1] * 17], virtual)


def test_a_rotation_goes_on_with_a_warning(caplog):
    fits(tiny_llama(max_position_embeddings=16), [[1] * 17])
    assert "the model's 16 positions" in caplog.text and "--max_length 16" in caplog.text


@pytest.mark.parametrize(
    ("make", "positions"),
    [
        (lambda: tiny_llama(max_position_embeddings=64), 64),
        (
            lambda: tiny_llama(
                max_position_embeddings=64,
                rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
            ),
            256,
        ),
        (lambda: tiny_roberta(max_position_embeddings=66), 64),
        (tiny_bloom, None),
    ],
)
def test_positions_are_those_that_a_text_can_use(make, positions):
    assert positions_of(make()) == positions


def test_answers_are_no_longer_than_there_is_room():
    questions = Questions([[1] * 10, [1] * 12], ["1", "2"], 30, end=2)
    assert within_room(questions, tiny_gpt2(n_positions=16)).max_new_tokens == 4
    assert within_room(questions, tiny_gpt2(n_positions=64)).max_new_tokens == 30
    assert within_room(questions, tiny_bloom()).max_new_tokens == 30


def test_a_size_that_a_configuration_lacks_is_made_up_for():
    config = tiny_llama().config
    assert size(config, "hidden_size", 7) == 32 and size(config, "no_such_size", 7) == 7
    config.size_by_layer = [16, 48]
    assert size(config, "size_by_layer", 7) == 48


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lines = [json.dumps({"question": f"What is {i} plus 1?", "answer": str(i + 1)}) for i in range(12)]
    (folder / "train.jsonl").write_text("\n".join(lines[:8]))
    (folder / "validation.jsonl").write_text("\n".join(lines[8:]))
    return folder


def train(model, data, out, *words):
    line = f"fed --model_name {model} --data_name qa --data_dir {data} --out_dir {out} --train_mode fed"
    line += " --client_num 2 --client_num_per_step 2 --client_batch_per_step 1 --max_steps 1 --dtype float32"
    return main([*line.split(), "--report_to", "none", *words])


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pad_token_without_a_row_is_never_looked_at(data, tmp_path):
    """Padded rows too, which a packed model has none of."""
    tokenizer = tiny_tokenizer()
    whole = save_tiny_llama(tmp_path / "whole")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 320
    beyond = saved(tmp_path / "beyond", tiny_llama(vocab_size=320), tokenizer)
    assert load_base(str(beyond), device="cpu").model.config.pad_token_id < 320
    for model in (whole, beyond):
        assert train(model, data, tmp_path / "runs", "--exp_name", model.name) == 0
    rows = [
        json.loads((tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("whole", "beyond")
    ]
    assert rows[0]["val_loss"] == rows[1]["val_loss"]


@pytest.mark.parametrize(
    ("model", "tokens", "words"),
    [
        (lambda: tiny_llama(vocab_size=320), ["plus"], "321 tokens and the model 320 rows"),
        (lambda: tiny_gpt2(vocab_size=321, n_positions=16), [], "use --max_length 16"),
    ],
)
def test_the_command_line_tells_it_before_weights_are_read(
    model, tokens, words, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("fedloom.model.base._load_model", lambda *args: pytest.fail("weights were read"))
    tokenizer = tiny_tokenizer(False)
    tokenizer.add_tokens(tokens)
    folder = saved(tmp_path / "model", model(), tokenizer)
    assert train(folder, data, tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert words in said and said.count("fedloom: error:") == 1 and "Traceback" not in said


def test_peers_are_told_too_and_eval_cuts_texts_to_what_the_model_reads(tmp_path, capsys, caplog):
    rows = [{"sentence": ("good " if i % 2 else "bad ") * 9, "label": i % 2} for i in range(8)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = save_tiny_bert(tmp_path / "model", max_position_embeddings=16)
    line = f"dfl --model_checkpoint {model} --data_dir {tmp_path} --out_dir {tmp_path} --name ring"
    line += " --num_clients 2 --num_rounds 1 --dtype float32 --report_to none"
    assert main(line.split()) == 2
    assert "use --max_length 16" in capsys.readouterr().err
    judged = f"eval --model_name {model} --data_name sst2 --data_dir {tmp_path} --dtype float32"
    assert main([*judged.split(), "--split", "validation", "--output_path", str(tmp_path / "eval")]) == 0
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["examples"] == 8
