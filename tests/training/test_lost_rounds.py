"""What a run has told of its data, where a part of its files does not say so."""

import json

from fedloom.training.lost_rounds import asks_for, lost_rounds


def test_a_round_that_clients_elsewhere_were_asked_for_counts_though_no_row_came_of_it(tmp_path):
    """Some may have answered before the server was killed; they train it again with other noise."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"round": n}) + "\n" for n in (1, 2)))
    checkpoint = tmp_path / "checkpoints" / "round-000002"
    for round_, lost in ((2, 0), (3, 1)):
        asks_for(tmp_path, round_)
        assert lost_rounds(tmp_path, checkpoint) == lost
    assert lost_rounds(tmp_path, checkpoint) == 1, "once"
    asks_for(tmp_path, 3)
    assert lost_rounds(tmp_path, checkpoint) == 2, "asked for again, and killed again"
