"""Reports as JSON, and where they were made."""

import json

import torch
import transformers

from modeling_yan.common.reports import machine, read_report, write_report


def test_a_report_comes_back_and_none_is_none(tmp_path):
    report = {"bleu": 12.5, "rows": [1, 2]}
    write_report(report, tmp_path / "new" / "folder" / "report.json")
    assert read_report(tmp_path / "new" / "folder") == report
    assert read_report(tmp_path) is None


def test_it_says_what_it_was_measured_with():
    measured = machine(torch.device("cpu"))
    assert measured["device"] == "CPU"
    assert measured["threads"] == torch.get_num_threads()
    assert (measured["torch"], measured["transformers"]) == (torch.__version__, transformers.__version__)
    json.dumps(measured)
