"""What the model writes at each evaluation, for people to read."""

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.trainer import YanTrainerMixin

COLUMNS = ("source", "answer", "reference")


class SamplesCallback(TrainerCallback):
    """
    Answers a few sources at each evaluation: into `samples.jsonl` in the output folder, as a table on the console and,
    where TensorBoard is reported to, as a table of its text tab.

    Args:
        trainer: whose model and tokenizer answer, with its seed.
        sources, references: what to answer, and one right answer to each.
        max_source_length: cuts sources, in tokens; the tokenizer's limit by default.
    """

    def __init__(
        self,
        trainer: YanTrainerMixin,
        sources: list[str],
        references: list[str],
        *,
        max_source_length: int | None = None,
    ):
        self.trainer, self.sources, self.references = trainer, sources, references
        self.max_source_length = max_source_length

    def on_evaluate(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        was_training = model.training
        with self.trainer.evaluation_weights():
            answers = generate_texts(
                model.eval(),
                self.trainer.processing_class,
                self.sources,
                max_source_length=self.max_source_length,
                generator=torch.Generator(model.device).manual_seed(args.seed),
            )
        model.train(was_training)
        rows = [dict(zip(COLUMNS, row)) for row in zip(self.sources, answers, self.references, strict=True)]
        with (Path(args.output_dir) / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": state.global_step, **row}, ensure_ascii=False) + "\n" for row in rows)
        table = Table(*COLUMNS, title=f"step {state.global_step}", show_lines=True)
        for row in rows:
            # Strings would be read as markup.
            table.add_row(*map(Text, row.values()))
        Console().print(table)
        lines = ["| " + " | ".join(value.replace("|", " ") for value in row.values()) + " |" for row in rows]
        text = "\n".join([f"| {' | '.join(COLUMNS)} |", "| --- | --- | --- |", *lines])
        for callback in self.trainer.callback_handler.callbacks:
            if getattr(callback, "tb_writer", None) is not None:
                callback.tb_writer.add_text("samples", text, state.global_step)
