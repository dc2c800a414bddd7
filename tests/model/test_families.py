"""Every family of language models: training stacked equals training alone with PEFT, beside any other client.

The table in `docs/models.md` says how each family is run; tests hold it to what is found, and
`PYTHONPATH=tests/helpers python tests/model/test_families.py` writes it.
"""

import pytest
import torch
from architectures import CAUSAL, sweep
from engine import make_stacked
from families import FAMILIES, PAGE, build, check_lora, full_float64, lora, way_of

pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.mark.parametrize("name", sweep(name for name in FAMILIES if name in CAUSAL))
def test_lora_beside_others_equals_lora_alone_with_peft(name, tmp_path):
    check_lora(name, tmp_path)


def write_page():
    begin, end = "<!-- families -->", "<!-- /families -->"
    table = ["| family | kind | runs |", "| --- | --- | --- |"]
    for name, (_, labels) in FAMILIES.items():
        with full_float64():
            base = build(name, torch.float64)
            way = way_of(make_stacked(base, lora(base)))
        table.append(f"| {name} | {'language model' if labels is None else 'encoder'} | {way} |")
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    PAGE.write_text("\n".join([before + begin, *table, end + after]), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_page()
