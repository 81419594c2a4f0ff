"""
Turns a fine-tuned causal or sequence-to-sequence model into a YAN: writes the teacher's answers as a data set, one for
each distinct source, and trains YAN on them. Interrupted writing resumes.

    python examples/run_distillation.py --teacher outputs/gpt2-e2e --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --distilled_dir outputs/distilled-e2e \
        --model_name_or_path outputs/autoencoder --output_dir outputs/yan-e2e
"""

from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from modeling_yan.common.arguments import ModelArguments, parse_arguments, run_script
from modeling_yan.data.tasks import Task
from modeling_yan.training.distillation import DistillationArguments, write_distilled_data
from modeling_yan.training.flow import FlowDataArguments, train_flow


def main() -> None:
    parser = HfArgumentParser((DistillationArguments, ModelArguments, FlowDataArguments, Seq2SeqTrainingArguments))
    arguments, model_arguments, data, training = parse_arguments(parser)
    with training.main_process_first(local=False, desc="the teacher's answers"):
        if training.process_index == 0:
            task, options = Task.load(data.task), {"seed": training.seed, "device": training.device}
            count = write_distilled_data(arguments, data.dataset_name, task, **options)
            print(f"{count:,} answers of {arguments.teacher} in {arguments.distilled_dir}", flush=True)
    if not arguments.only_write:
        data.task, data.dataset_name = "pairs", arguments.distilled_dir
        train_flow(model_arguments, data, training)


if __name__ == "__main__":
    run_script(main)
