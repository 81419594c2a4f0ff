"""Samples on the console: texts as they are, and as long as training read them."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

from modeling_yan.training.samples import SamplesCallback

from ..helpers import tiny_model, word_tokenizer


def test_samples_are_no_markup_and_are_cut_as_in_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    model = tiny_model(max_position_embeddings=8)
    trainer = SimpleNamespace(
        model=model,
        processing_class=word_tokenizer(),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        evaluation_weights=nullcontext,
        callback_handler=SimpleNamespace(callbacks=[]),
    )
    sources = ["[INST] w5 [/INST]", "name[w6], :cat:", "w5 " * 30]
    callback = SamplesCallback(trainer, sources, ["w6"] * 3, max_source_length=8)
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    callback.on_evaluate(SimpleNamespace(seed=0, output_dir=tmp_path), state, None)
    shown = capsys.readouterr().out
    assert sources[0] in shown
    assert sources[1] in shown
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == sources
