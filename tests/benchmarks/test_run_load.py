"""The load test reports what was answered as the model answers."""

import json

import pytest

from ..helpers import E2E_DATA, YAN_E2E, ran, script_functions


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_servers_with_and_without_batching_are_measured(tmp_path):
    pytest.importorskip("ray")
    options = {"model": YAN_E2E, "task": "e2e_nlg", "dataset_name": E2E_DATA, "output": "load.json"}
    ran("benchmarks/run_load.py", cwd=tmp_path, **options, clients=[1, 8], seconds=1, num_prompts=8)
    report = json.loads((tmp_path / "load.json").read_text())
    rows = [(row["server"], row["clients"]) for row in report["rows"]]
    assert rows == [(server, clients) for server in ("dynamic batching", "no batching") for clients in (1, 8)]
    batch = {(row["server"], row["clients"]): row["prompts_per_batch"] for row in report["rows"]}
    assert batch["dynamic batching", 8] > 2
    assert batch["no batching", 8] == 1
    assert all(0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in report["rows"])


def test_the_load_before_is_that_before_the_first_answer(monkeypatch):
    main, order = script_functions("benchmarks/run_load.py")["main"], []

    def expected_answers(arguments):
        order.append("answers")
        raise ValueError("enough")

    replaced = {"parse": lambda: None, "check_extra": lambda: None, "expected_answers": expected_answers}
    for name, function in replaced.items():
        monkeypatch.setitem(main.__globals__, name, function)
    monkeypatch.setattr("os.getloadavg", lambda: order.append("load") or (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="enough"):
        main()
    assert order == ["load", "answers"]


def test_it_can_be_read_without_a_server():
    assert {"measure", "served", "put_load"} <= script_functions("benchmarks/run_load.py").keys()
