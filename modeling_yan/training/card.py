"""The README.md of a trained model: what it is, what it was trained on, for how long, and how well it did."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard
from peft import PeftModel
from transformers import PreTrainedModel, Trainer
from transformers.modelcard import TrainingSummary, parse_log_history

from modeling_yan.losses_yan import LOSS_TERMS
from modeling_yan.model_card_yan import DEFAULT_TAG, PIPELINE_TAGS, model_card
from modeling_yan.training.budget import rows_per_update

# By this a card is known that may be written anew: nobody has put a word of their own into its place.
MARK = "<!-- Written by the trainer. Delete this line, and a later run leaves the card as it is. -->"
# What an evaluation logs that is no score.
NO_SCORES = ("epoch", "time", "per_second", "interval")
Names = str | list[str] | None


def may_write_card(folder: str | Path) -> bool:
    """Whether a folder has no README.md, or one that a trainer wrote."""
    file = Path(folder) / "README.md"
    return not file.exists() or MARK in file.read_text(encoding="utf-8")


def as_list(names: Names) -> list[str]:
    """One name or several as a list."""
    return [names] if isinstance(names, str) else list(names or [])


def scores_of(logged: dict) -> dict[str, float]:
    """The numbers of an evaluation that say how good a model is."""
    return {
        name.removeprefix("eval_"): value
        for name, value in logged.items()
        if isinstance(value, int | float) and not any(word in name for word in NO_SCORES)
    }


def last_evaluation(trainer: Trainer) -> dict[str, float]:
    """The scores of the last evaluation in the log; none if there was none."""
    logged = [{n: v for n, v in entry.items() if n.startswith("eval_")} for entry in trainer.state.log_history]
    return scores_of(next((entry for entry in reversed(logged) if entry), {}))


def facts(trainer: Trainer, data: list[str]) -> dict[str, str]:
    """
    What a table says of a training run, by name.

    Args:
        data: names of what it was trained on.
    """
    args, state, rows = trainer.args, trainer.state, trainer.train_dataset
    names, schedule = ", ".join(data), args.lr_scheduler_type
    counted = f"{len(rows):,} rows" if hasattr(rows, "__len__") else "a stream" if rows is not None else ""
    found = {
        "data": f"{names} ({counted})" if names and counted else names or counted,
        "updates": f"{state.global_step:,}" + (f" ({state.epoch:.3g} epochs)" if state.epoch else ""),
        "batch size": str(rows_per_update(args)),
        "learning rate": f"{args.learning_rate:g}, schedule {getattr(schedule, 'value', schedule)}",
        "seed": str(args.seed),
    }
    if trainer.embedding_learning_rate is not None:
        found["learning rate of the token embeddings"] = f"{trainer.embedding_learning_rate:g}"
    losses = [entry for entry in state.log_history if "loss" in entry]
    if losses:
        terms = [f"{name} {losses[-1][name]:.4g}" for name in LOSS_TERMS if name in losses[-1]]
        found["last loss"] = f"{losses[-1]['loss']:.4g}" + (f" ({', '.join(terms)})" if terms else "")
    return {name: text for name, text in found.items() if text}


def training_section(trainer: Trainer, data: list[str]) -> str:
    """A training run as Markdown: a table of `facts`, and one of scores where something was scored."""
    lines = ["## Training", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {text} |" for name, text in facts(trainer, data).items()]
    scored = {"evaluation": last_evaluation(trainer)} | {n: scores_of(s) for n, s in trainer.scores.items()}
    scored = {name: scores for name, scores in scored.items() if scores}
    if scored:
        columns = list(dict.fromkeys(name for scores in scored.values() for name in scores))
        lines += ["", f"| scored on | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
        for name, scores in scored.items():
            cells = (f"{scores[column]:.4g}" if column in scores else "" for column in columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_results(trainer: Trainer, data: list[str]) -> list[EvalResult]:
    """
    The scores that a trainer holds (`trainer.scores`: split -> scores) as the Hub's model-index lists them; none where
    nothing says what data they were measured on.
    """
    if not data:
        return []
    name = ", ".join(data)
    return [
        EvalResult(
            task_type=PIPELINE_TAGS.get(type(unwrapped(trainer)).__name__, DEFAULT_TAG),
            dataset_type=name,
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for split, scores in trainer.scores.items()
        for metric, value in scores_of(scores).items()
        if metric != "rows"
    ]


def unwrapped(trainer: Trainer) -> PreTrainedModel:
    """The model that is trained, without what accelerators and adapters put around it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def write_card(
    trainer: Trainer,
    *,
    language: str | None = None,
    license: str | None = None,
    tags: Names = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: Names = None,
    dataset_tags: Names = None,
    dataset: Names = None,
    dataset_args: Names = None,
) -> None:
    """
    Writes README.md into a trainer's output folder.

    Args:
        trainer: of `YanTrainerMixin`.
        language, license, tags, …: as in Trainer's `create_model_card`; they stand in the card's metadata. The data's
            names are those of `dataset`, or of `dataset_tags`, or the trainer's `data_names`.
    """
    folder = Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted = isinstance(model, PeftModel)
    base = unwrapped(trainer)
    name = model_name or folder.resolve().name
    data = as_list(dataset) or as_list(dataset_tags) or trainer.data_names
    adapter_of = (finetuned_from or base.config.name_or_path or "a YAN") if adapted else None
    card = ModelCard(model_card(base, name, f"{training_section(trainer, data)}\n\n{MARK}", adapter_of=adapter_of))
    summary = TrainingSummary(
        model_name=name,
        language=language,
        license=license,
        tags=list(dict.fromkeys([*card.data.tags, "generated_from_trainer", *as_list(tags)])),
        finetuned_from=finetuned_from,
        tasks=tasks,
        dataset=dataset or dataset_tags,
        dataset_tags=dataset_tags,
        dataset_args=dataset_args,
        eval_results=parse_log_history(trainer.state.log_history)[2] or {},
    )
    for key, value in summary.create_metadata().items():
        if key != "model-index" or value[0]["results"]:
            card.data[key] = value
    results = measured_results(trainer, data)
    if results:
        card.data.eval_results, card.data.model_name = [*(card.data.eval_results or []), *results], name
    if tasks:
        card.data["pipeline_tag"] = as_list(tasks)[0]
    folder.mkdir(parents=True, exist_ok=True)
    card.save(folder / "README.md")
    if adapted:
        add_peft_metadata(model, folder, card)


def add_peft_metadata(model: PeftModel, folder: Path, card: ModelCard) -> None:
    """What PEFT adds to a card, without what it takes away: the tags and the base that stood there."""
    model.create_or_update_model_card(str(folder))
    written = ModelCard.load(folder / "README.md")
    written.data["tags"] = list(dict.fromkeys([*card.data.tags, *(written.data.tags or [])]))
    if card.data.get("base_model"):
        written.data["base_model"] = card.data["base_model"]
    written.save(folder / "README.md")
