"""`report_to`: what TensorBoard, Weights & Biases and MLflow are told of a run, several at once."""

import json
import logging
import struct
from pathlib import Path

import pytest
from runs import leave_run, rows_of

from fedloom.errors import UserError
from fedloom.options.trackers import TRACKERS, check_trackers, tracker_names
from fedloom.runs.metrics import MetricsLog
from fedloom.runs.trackers import Tracker, forgiving


@pytest.fixture
def folder(tmp_path):
    return leave_run(tmp_path / "mine", rows_of([3.0]), finished=False, seed=7)


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """MLflow that keeps its runs in a folder; returns a client of it."""
    module = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    module.set_tracking_uri((tmp_path / "mlruns").as_uri())
    return module.MlflowClient()


@pytest.fixture
def wandb(monkeypatch):
    """Weights & Biases without the network."""
    module = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return module


def tell(folder, report_to, losses, resume_round=None):
    with MetricsLog(folder, report_to, resume_round) as log:
        for number, loss in losses.items():
            log.write({"round": number, "val_loss": loss, "peer_val_loss": [loss, 2 * loss]})


def runs_of(mlflow):
    (experiment,) = [each for each in mlflow.search_experiments() if each.name == "fedloom"]
    return mlflow.search_runs([experiment.experiment_id])


def history(mlflow, run, name):
    return {each.step: each.value for each in mlflow.get_metric_history(run.info.run_id, name)}


def test_mlflow_has_options_metrics_and_how_it_ended(folder, mlflow):
    tell(folder, "mlflow", {0: 3.0, 1: 2.0})
    (run,) = runs_of(mlflow)
    assert run.info.run_name == "mine" and run.info.status == "FINISHED"
    assert run.data.params["seed"] == "7" and "token" not in run.data.params
    assert history(mlflow, run, "val_loss") == {0: 3.0, 1: 2.0}
    assert history(mlflow, run, "peer_val_loss/1") == {0: 6.0, 1: 4.0}
    with pytest.raises(KeyError), MetricsLog(folder, "mlflow", 1):
        raise KeyError
    (run,) = runs_of(mlflow)
    assert run.info.status == "FAILED", "a run that goes on is the same run there"


def test_mlflow_goes_on_with_a_run_that_is_resumed_and_begins_another_for_a_new_one(folder, mlflow):
    tell(folder, "mlflow", {0: 3.0, 1: 2.0})
    tell(folder, "mlflow", {2: 1.0}, resume_round=1)
    (run,) = runs_of(mlflow)
    assert history(mlflow, run, "val_loss") == {0: 3.0, 1: 2.0, 2: 1.0}
    tell(folder, "mlflow", {0: 3.0})
    assert len(runs_of(mlflow)) == 2


def test_wandb_writes_its_files_offline_with_options_and_every_round(folder, wandb):
    tell(folder, "wandb", {0: 3.0, 1: 2.0})
    tell(folder, "wandb", {2: 1.0}, resume_round=1)
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    id_ = json.loads((folder / "trackers.json").read_text())["wandb"]
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{id_}"}
    rows = [row for file in files for row in rows_of_wandb(file)]
    assert [(row["round"], row["val_loss"], row["peer_val_loss/1"]) for row in rows] == [
        (0, 3.0, 6.0),
        (1, 2.0, 4.0),
        (2, 1.0, 2.0),
    ]


def rows_of_wandb(file):
    """The rows in a small file of Weights & Biases: LevelDB's log format, records of protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32_768 - at % 32_768 < 7:  # a block ends
            at += 32_768 - at % 32_768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record = Record.FromString(whole)
            whole = b""
            if record.HasField("history"):
                items = record.history.item
                named = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
                rows.append(named)
    return rows


def test_several_are_told_at_once(folder, mlflow, wandb):
    tell(folder, "tensorboard, wandb,mlflow", {0: 3.0})
    assert list(folder.glob("events.out.tfevents*")) and list(folder.glob("wandb/offline-run-*"))
    assert len(runs_of(mlflow)) == 1
    assert json.loads((folder / "trackers.json").read_text()).keys() == {"wandb", "mlflow"}


def test_a_tracker_that_fails_is_warned_of_once_and_ends_no_run(caplog):
    told = []

    def refuse(row):
        told.append(row)
        raise ConnectionError("the server is away")

    tracker = forgiving("mlflow", Tracker(refuse, lambda ended: told.append(ended)))
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            tracker.write({"round": number})
        tracker.close(True)
    assert told == [{"round": 0}] and caplog.text.count("metrics.jsonl has every round") == 1
    assert "ConnectionError: the server is away" in caplog.text


def test_names_are_judged_without_importing_anything(tmp_path, monkeypatch):
    assert (
        tracker_names("wandb, tensorboard,wandb") == ["wandb", "tensorboard"] and tracker_names("none") == []
    )
    for text in ("none", "tensorboard"):
        check_trackers(text)
    monkeypatch.setattr("fedloom.options.trackers.TRACKERS", TRACKERS | {"wandb": "no_such_package"})
    for text, part in [
        ("wandb,tensorboard", "wandb is not installed; pip install 'fedloom\\[wandb\\]'"),
        ("wanbd", "wanbd is not one of tensorboard, wandb, mlflow, none.*did you mean wandb"),
        ("none,tensorboard", "give none alone"),
        (" , ", "names nothing"),
    ]:
        with pytest.raises(UserError, match=part):
            check_trackers(text)
    # What wandb itself leaves in the working directory is no package.
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="is not installed"):
        check_trackers("wandb")


def test_one_that_does_not_begin_is_told_with_its_way_out(folder, mlflow, monkeypatch):
    import mlflow as module

    module.set_tracking_uri(str(Path("/proc/none")))
    with pytest.raises(UserError, match=r"mlflow does not begin .*MLFLOW_TRACKING_URI"):
        MetricsLog(folder, "mlflow")
