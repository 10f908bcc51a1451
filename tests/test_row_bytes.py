"""The table of how long rows are is what its command prints."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEW = [
    "T5-large",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("all-MiniLM-L6-v2", "BERT-base", "RoBERTa-large", "GPT-2", "Qwen2.5-0.5B",
                     "Llama-3.2-1B", "Llama-3.1-8B")
    ),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("name", FEW)
def test_a_line_of_the_table(name):
    script = runpy.run_path(str(ROOT / "benchmarks" / "cost" / "row_bytes.py"))
    page = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")
    assert script["line"](name) in page.splitlines()
