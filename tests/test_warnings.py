"""Nothing that users do with a model ends in a warning that its code causes: no name that libraries are giving up."""

import json
import os
import subprocess
import sys
import textwrap

from .helpers import ROOT, YAN_E2E

# The main path in a process of its own, where nothing has been imported, and no warning given, before.
MAIN_PATH = f"""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainingArguments
    from transformers import pipeline
    from modeling_yan.training.trainer import YanSeq2SeqTrainer

    folder, source = {str(YAN_E2E)!r}, "name[Aromi], eatType[coffee shop]"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    inputs = tokenizer([source, source + ", area[riverside]"], padding=True, return_tensors="pt")
    model.generate(**inputs, do_sample=True, temperature=0.9, top_k=5, num_return_sequences=2)
    ids = torch.tensor(tokenizer(text_target="Aromi is a coffee shop.")["input_ids"][1:])
    model.log_likelihood(inputs["input_ids"][:1], labels=ids.unsqueeze(0), num_priors=1)
    pipeline("text2text-generation", model=folder, trust_remote_code=True)(source)
    row = {{"input_ids": tokenizer(source)["input_ids"], "labels": ids.tolist()}}
    data = Dataset.from_list([row] * 4)
    trainer = YanSeq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            "out", max_steps=2, per_device_train_batch_size=2, eval_strategy="steps", eval_steps=1, use_cpu=True,
            predict_with_generate=True, report_to="none", gradient_checkpointing=True,
        ),
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    AutoModelForSeq2SeqLM.from_pretrained("out").save_pretrained("again")
"""
# Warnings that libraries cause by themselves are theirs: those whose code is called from none of ours.
RECORD = """
    import json, sys, traceback, warnings

    found = []

    def record(message, category, filename, lineno, file=None, line=None):
        if issubclass(category, FutureWarning | DeprecationWarning | PendingDeprecationWarning):
            frames = traceback.extract_stack()[:-1]
            # The warning's own line, and who called it.
            callers = [frame.filename for frame in frames if "warnings.py" not in frame.filename][-3:]
            if any("modeling_yan" in name or name.endswith("_yan.py") for name in [filename, *callers]):
                found.append(f"{category.__name__} at {filename}:{lineno}: {message}")

    warnings.simplefilter("always")
    warnings.showwarning = record
"""


def warned(code: str, folder) -> list[str]:
    """Warnings of names given up that running this code in a process of its own ends in and that our code causes."""
    report = '\n    print("FOUND", json.dumps(found))\n'
    script = textwrap.dedent(RECORD) + textwrap.dedent(code) + textwrap.dedent(report)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, env=environment(), timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always"}


def test_loading_writing_training_and_saving_cause_no_warning_of_names_given_up(tmp_path):
    assert warned(MAIN_PATH, tmp_path) == []


def test_a_warning_that_our_code_causes_would_be_seen(tmp_path):
    (tmp_path / "old_yan.py").write_text("import warnings\ndef old():\n    warnings.warn('old name', FutureWarning)\n")
    code = "import sys\nsys.path.insert(0, '.')\nimport old_yan\nold_yan.old()\n"
    (found,) = warned(code, tmp_path)
    assert "old name" in found
