import datasets
import pytest
from run_files import write_rows

from fedloom.data.clients import load_clients, load_validation
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError


def reviews(count):
    return [{"sentence": f"phrase {n}", "label": n % 2, "idx": n} for n in range(count)]


@pytest.fixture
def own_files(tmp_path):
    """Clients' data as they may have it: a file, a folder with splits, a saved data set with splits."""
    write_rows(tmp_path / "client_1/train.jsonl", reviews(3))
    write_rows(tmp_path / "client_1/val.jsonl", reviews(2))
    saved = {"train": reviews(4), "validation": reviews(1)}
    parts = {name: datasets.Dataset.from_list(rows) for name, rows in saved.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "client_2")
    return tmp_path


def test_clients_may_have_files_folders_and_saved_sets(own_files):
    template = str(own_files / "client_{i}")
    assert [len(own) for own in load_clients(template, 2, TASKS["sst2"])] == [3, 4]
    assert [len(own) for own in load_validation(template, 2, TASKS["sst2"])] == [2, 1]
    (only,) = load_clients(str(own_files / "client_1/train.jsonl"), 1, TASKS["sst2"])
    assert len(only) == 3, "one client needs no number"


@pytest.mark.parametrize("template", ["site {}/a.jsonl", "site {i}/a.jsonl", "site {i}/../site {}/a.jsonl"])
def test_the_number_may_stand_anywhere(tmp_path, template):
    for number in (1, 2):
        write_rows(tmp_path / f"site {number}/a.jsonl", reviews(number))
    clients = load_clients(str(tmp_path / template), 2, TASKS["sst2"])
    assert [len(own) for own in clients] == [1, 2]


def test_one_template_for_many_clients():
    with pytest.raises(UserError, match=r"'data/train' is the same for all 7 clients; write \{i\} where"):
        load_clients("data/train", 7, TASKS["sst2"])
    with pytest.raises(UserError, match="num_clients is 0"):
        load_clients("data/{i}", 0, TASKS["sst2"])


def test_clients_that_are_missing_are_named_with_what_is_there(tmp_path):
    for number in (0, 1, 2, 10):
        write_rows(tmp_path / f"client_{number}/train.jsonl", [{"not": "read"}])
    template = str(tmp_path / "client_{i}")
    with pytest.raises(UserError) as caught:
        load_clients(template, 3, TASKS["sst2"])
    assert str(caught.value) == (
        f"dataset_path_template '{template}' for 3 clients, counted from 1, needs '{tmp_path}/client_3', "
        f"which cannot be found; '{tmp_path}' holds client_0, client_1, client_2, client_10. Make clients' "
        "folders with `fedloom split`, or mend the template or num_clients."
    )
    with pytest.raises(UserError, match=r"client_5' and 3 more, which"):
        load_clients(template, 8, TASKS["sst2"])
    with pytest.raises(
        UserError, match=r"val_dataset_path_template '.*' needs '.*validation', .*holds client_0"
    ):
        load_validation(str(tmp_path / "validation"), 3, TASKS["sst2"])
    with pytest.raises(UserError, match=r"there is no folder '.*nowhere' either"):
        load_clients(str(tmp_path / "nowhere/{i}"), 3, TASKS["sst2"])


def test_a_clients_rows_are_judged(tmp_path):
    write_rows(tmp_path / "client_1.jsonl", reviews(3))
    write_rows(tmp_path / "client_2.jsonl", [*reviews(1), {"sentence": "odd", "label": -1}])
    with pytest.raises(UserError, match=r"client_2\.jsonl, line 2: field 'label' must be one of 0 .* is -1"):
        load_clients(str(tmp_path / "client_{i}.jsonl"), 2, TASKS["sst2"])
    with pytest.raises(UserError, match=r"client_1\.jsonl, line 1: no field 'question', which qnli needs"):
        load_clients(str(tmp_path / "client_{i}.jsonl"), 2, TASKS["qnli"])


def test_a_saved_client_whose_label_is_out_of_range_is_named_with_the_row(tmp_path):
    rows = [*reviews(4), {"sentence": "odd", "label": 9, "idx": 4}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "client_1")
    with pytest.raises(UserError, match=r"client_1, row 5: field 'label' must be one of 0 \(negative\), 1 "):
        load_clients(str(tmp_path / "client_{i}"), 1, TASKS["sst2"])


def test_a_folder_without_the_part_that_is_needed(tmp_path):
    write_rows(tmp_path / "train.jsonl", reviews(3))
    with pytest.raises(
        UserError, match=r"val_dataset_path_template '.*' must hold validation\.jsonl.*train\.jsonl"
    ):
        load_validation(str(tmp_path), 2, TASKS["sst2"])
    (tmp_path / "train.jsonl").rename(tmp_path / "test.jsonl")
    with pytest.raises(
        UserError, match=r"dataset_path_template '.*' must hold train\.jsonl.*it holds test\.jsonl"
    ):
        load_clients(str(tmp_path), 1, TASKS["sst2"])
