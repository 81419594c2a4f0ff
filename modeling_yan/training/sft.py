"""Supervised fine-tuning on TRL's data formats, through TRL's trainer."""

from datasets import IterableDataset
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, Trainer
from trl import SFTTrainer

from modeling_yan.canvas_yan import text_room
from modeling_yan.data.tokenization import model_end_id, target_ids
from modeling_yan.training.trainer import YanTrainerMixin


def split_example(example: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """
    Source and target text of a row in one of TRL's formats: `prompt` and `completion` as texts or as messages, or
    `messages` whose last turn is the assistant's. Conversations become text by the tokenizer's chat template.

    Raises:
        ValueError: for a row with nothing to read or nothing to write, and a conversation without a template.
    """
    if "messages" in example:
        *prompt, last = example["messages"]
        if last["role"] != "assistant" or not prompt:
            raise ValueError(
                f"messages must end with the assistant's turn after at least one other, got roles "
                f"{[message['role'] for message in example['messages']]}"
            )
        completion = [last]
    elif "prompt" in example and "completion" in example:
        prompt, completion = example["prompt"], example["completion"]
    else:
        raise ValueError(
            "YAN writes a target to a source: rows need `prompt` and `completion`, or `messages`; got "
            f"{sorted(example)}"
        )
    if isinstance(completion, list):
        if len(completion) != 1:
            raise ValueError(f"a completion of {len(completion)} messages: YAN writes one answer; keep the last")
        completion = completion[0]["content"]
    if isinstance(prompt, list):
        if tokenizer.chat_template is None:
            raise ValueError(
                "rows are conversations, but the tokenizer has no chat_template; set tokenizer.chat_template"
            )
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    if not all(isinstance(text, str) and text.strip() for text in (prompt, completion)):
        raise ValueError(f"a prompt or completion is empty or no text; fill it in or delete the row: {example}")
    return prompt, completion


class _PlainLoss(SFTTrainer):
    # TRL's loss runs the language-model head over encoder states, shifted by one: neither YAN's flow nor its loss.
    compute_loss = Trainer.compute_loss


class YanSFTTrainer(YanTrainerMixin, _PlainLoss):
    """
    TRL's `SFTTrainer` for a model that reads a source and writes a target: prompts and completions are tokenised apart,
    as at inference, a target ends with the model's EOS, and the loss is the model's own. Everything else (SFTConfig,
    `peft_config`, logging, saving) is TRL's. `max_length` of the SFTConfig bounds source and target each, and so does
    what the model has positions for; longer ones are cut.

    Raises:
        ValueError: for an SFTConfig with packing.
    """

    def __init__(self, model, args=None, *, processing_class: PreTrainedTokenizerBase, data_collator=None, **kwargs):
        if args is not None and args.packing:
            raise ValueError("packing=True joins rows end to end; YAN reads and writes each row by itself")
        # Rows are tokenised before TRL's trainer has its model.
        self._end_id = model_end_id(model.config, processing_class)
        positions = model.config.max_position_embeddings
        self._room = (positions, text_room(positions, model.config.canvas_ratio))
        super().__init__(
            model,
            args,
            processing_class=processing_class,
            data_collator=data_collator or DataCollatorForSeq2Seq(processing_class),
            **kwargs,
        )

    def create_model_card(self, model_name=None, dataset_name=None, tags=None, **kwargs) -> None:
        """With TRL's arguments, who calls it at every checkpoint, or Trainer's."""
        super().create_model_card(model_name=model_name, dataset=dataset_name, tags=tags, **kwargs)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        end_id = self._end_id
        longest_source, longest_target = (min(args.max_length or room, room) for room in self._room)

        def tokenize(example: dict) -> dict:
            source, target = split_example(example, processing_class)
            ids = processing_class(source, truncation=True, max_length=longest_source)["input_ids"]
            return {"input_ids": ids, "labels": target_ids(processing_class, [target], end_id, longest_target)[0]}

        columns = dataset.column_names
        if isinstance(dataset, IterableDataset):
            return dataset.map(tokenize, remove_columns=columns)
        return dataset.map(tokenize, remove_columns=columns, desc=f"tokenise {dataset_name}")
