"""Tables of measured quality, and the page that carries them."""

import json
import re

import pytest
from datasets import Dataset

from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.evaluation.quality import longest_sources, parse_variant
from modeling_yan.evaluation.report import fill_page, quality_tables, sweep_table, tables

from ..helpers import ROOT


def row(system: str, value: float, **setting) -> dict:
    names = ("bleu", "rougeL", "f1", "exact_match")
    scores = dict.fromkeys(names, value) | {f"{name}_interval": [value - 1, value + 1] for name in names}
    return {"system": system, **setting, **scores, "self_bleu": 50.0, "word_entropy": 5.0}


def yan(value: float, steps: int, length: str = "predicted", lengths: int = 1, **setting) -> dict:
    sizes = {"num_candidates": 1, "num_length_candidates": lengths, "num_inference_steps": steps}
    return row("YAN", value, length=length, **sizes, **setting)


REPORT = {
    "metric": "bleu",
    "rows": 1234,
    "split": "test",
    "seed": 0,
    "threads": 2,
    "parameters": 1000,
    "training": {
        "yan": {"train_flops": 1e12, "total_train_flops": 3e12, "train_minutes": 1.0, "total_train_minutes": 4.5},
        "gpt2-x": {"train_flops": 2e12, "train_minutes": 2.0},
        "masked_diffusion-x": None,
    },
    "quality": [
        row("autoencoder of the first reference", 99.0),
        row("gpt2-x", 60.0, parameters=1001),
        row("masked_diffusion-x", 20.0, parameters=999, num_inference_steps=3),
        yan(40.0, 1),
        yan(50.0, 3),
        yan(55.0, 3, lengths=5),
        yan(45.0, 3, "oracle"),
        yan(52.0, 3, variant="time_shift=2"),
    ],
    "length_head": {"exact": 25.0, "mean_absolute_error": 1.5},
    "speed_batch_1": {"YAN 1 x 5": {"latency_ms": {"median": 12.0}, "tokens_per_second": 1234.0}},
}


def sweep_row(variant: str, seed: int, value: float, updates: int = 100) -> dict:
    training = {"updates": updates, "train_flops": 2e12, "train_minutes": 1.5}
    quality = [
        row("autoencoder of the first reference", 99.0),
        yan(value, 1),
        yan(value + 1, 3, lengths=5),
        yan(value + 2, 3, variant="x=1"),
    ]
    return {**REPORT, "variant": variant, "seed": seed, "training": training, "quality": quality}


def test_a_sweep_has_a_line_for_each_variant_with_its_spread_over_seeds():
    text = sweep_table([sweep_row("plain", 0, 10.0), sweep_row("plain", 1, 14.0), sweep_row("other", 0, 20.0, 50)])
    assert "BLEU-4 over 1,234 rows of the test split." in text
    assert (
        "| variant | seeds | updates | TFLOP | minutes | length predicted: 1 step "
        "| length predicted, best of 5: 3 steps | length predicted, `x=1`: 3 steps |" in text
    )
    assert "| plain | 2 | 100 | 2.0 | 1.5 | 12.0 [10.0, 14.0] | 13.0 [11.0, 15.0] | 14.0 [12.0, 16.0] |" in text
    assert "| other | 1 | 50 | 2.0 | 1.5 | 20.0 | 21.0 | 22.0 |" in text


def test_every_system_setting_and_cost_is_in_the_tables():
    text = quality_tables(REPORT)
    assert "| YAN, length predicted | 1,000 | 3 TFLOP | 4.5 | 3 | 50.0 [49.0, 51.0] | 50.0 | 50.0 | 50 | 5.0 |" in text
    assert "| YAN, length predicted, best of 5 |" in text
    assert "| GPT-2-shaped | 1,001 | 2 TFLOP | 2.0 | tokens | 60.0 [59.0, 61.0] |" in text
    assert "| masked diffusion | 999 | not counted | not counted | 3 | 20.0" in text
    assert "| length | 1 | 3 |" in text
    assert "| length predicted | 40.0 | 50.0 |" in text
    assert "| length predicted, best of 5 | – | 55.0 |" in text
    assert "| `time_shift=2` | 52.0 [51.0, 53.0] |" in text
    assert "gives back 99.0" in text
    assert "1,234 rows of the test split" in text
    assert "1,234 longest sources of the test split" in quality_tables({**REPORT, "longest_rows": 1234})
    assert "25 % of the rows, 1.5 tokens off" in text
    assert "no ceiling" not in text
    below = [row("autoencoder of the first reference", 45.0), *REPORT["quality"][1:]]
    assert "no ceiling" in quality_tables({**REPORT, "quality": below})
    on_gpu = quality_tables({**REPORT, "device": "NVIDIA X", "speed_batch_1": {}})
    assert "seed 0, NVIDIA X." in on_gpu
    assert "Speed was not measured in this run." in on_gpu
    assert "seed 0, 2 threads." in text
    assert "YAN (1 prior, 5 lengths) 12.0 ms, 1,234 tokens per second" in text
    # Every row of a table has as many cells as its header.
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_only_the_places_of_a_page_change():
    end = "<!-- end of table -->\n"
    page = f"before\n<!-- table: a.json -->\nold\n{end}after\n<!-- table: b.json -->\n{end}"
    filled = fill_page(page, lambda name: f"new {name}\n")
    assert filled == page.replace("old\n", "new a.json\n").replace("b.json -->\n", "b.json -->\nnew b.json\n")
    assert fill_page(filled, lambda name: f"new {name}\n") == filled


def test_several_reports_are_summed_up_by_the_best_row_of_each_baseline():
    other = {**REPORT, "task": "b", "metric": "exact_match", "training": {}}
    lines = tables({**REPORT, "task": "a"}, other).splitlines()
    assert len(lines) == 4
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        *("a, test", "BLEU-4", "1,234"),
        *("50.0 [49.0, 51.0]", "60.0 [59.0, 61.0]", "–", "20.0 [19.0, 21.0]", "3"),
    ]
    assert lines[3].startswith("| b, test | exact match | 1,234 |")
    assert lines[3].endswith("| not counted |")
    with pytest.raises(ValueError, match="no row of YAN in three steps"):
        tables(other, {**other, "quality": [row("gpt2-x", 1.0)]})
    twice = tables({**REPORT, "task": "a"}, {**REPORT, "task": "a"})
    assert twice.count("| a (yan), test |") == 2


@pytest.mark.parametrize("name", ["quality.md", "quality_28m.md", "results.md"])
def test_the_pages_in_docs_show_what_was_measured(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert "<!-- table: " in page

    def table_of(names: str) -> str:
        return tables(*(json.loads((ROOT / name).read_text(encoding="utf-8")) for name in names.split()))

    assert fill_page(page, table_of) == page


def test_variants_are_options_with_yaml_values():
    assert parse_variant("time_shift=2, expert_selection=argmax,do_sample=true") == {
        "time_shift": 2,
        "expert_selection": "argmax",
        "do_sample": True,
    }
    for text in ("time_shift", "=2", "a=1,,b=2"):
        with pytest.raises(ValueError, match="name=value"):
            parse_variant(text)


def test_the_longest_sources_keep_their_order():
    sources = ["a", "a b c", "a b", "a b c d"]
    tokenizer = train_tokenizer(sources, 270, 16)
    rows = Dataset.from_dict({"source": sources, "target": ["0", "1", "2", "3"]})
    assert longest_sources(rows, tokenizer, 2)["target"][:] == ["1", "3"]
    assert longest_sources(rows, tokenizer, 9)["source"][:] == sources
    with pytest.raises(ValueError, match="longest_rows=0"):
        longest_sources(rows, tokenizer, 0)
