"""
A process that has imported nothing before: the package changes no registry of pipelines, and nothing that users do with
a model ends in a warning that its code causes, of a name that libraries are giving up.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from .helpers import ROOT, YAN_E2E

REGISTRIES = """
    from transformers import pipelines

    def registries():
        return dict(pipelines.REMOVED_TASKS), set(pipelines.PIPELINE_REGISTRY.get_supported_tasks())

    before = registries()
    import modeling_yan
    outcome["registries_changed"] = registries() != before
"""
# What users do.
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
    outcome = {"warnings": found}

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


def outcome_of(*codes: str, folder) -> dict:
    """
    What running these pieces of code in a process of its own left in `outcome`: under "warnings" those of names given
    up that our code causes.
    """
    report = 'print("FOUND", json.dumps(outcome))'
    script = "\n".join(textwrap.dedent(code) for code in (RECORD, *codes, report))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, env=environment(), timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict:
    return outcome_of(REGISTRIES, MAIN_PATH, folder=tmp_path_factory.mktemp("fresh"))


def test_importing_the_package_changes_no_registry_beyond_the_auto_classes(outcome):
    assert outcome["registries_changed"] is False


def test_loading_writing_training_and_saving_cause_no_warning_of_names_given_up(outcome):
    assert outcome["warnings"] == []


def test_a_warning_that_our_code_causes_would_be_seen(tmp_path):
    (tmp_path / "old_yan.py").write_text("import warnings\ndef old():\n    warnings.warn('old name', FutureWarning)\n")
    code = "import sys\nsys.path.insert(0, '.')\nimport old_yan\nold_yan.old()\n"
    (found,) = outcome_of(code, folder=tmp_path)["warnings"]
    assert "old name" in found
