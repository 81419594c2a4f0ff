"""
Stages 2 and 3: trains the flow on source-target pairs, from an autoencoder, from another YAN, or from scratch.

    python examples/run_flow.py configuration/training/flow_e2e.yaml
    python examples/run_flow.py --model_name_or_path outputs/autoencoder --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --output_dir outputs/flow --max_steps 2000

All flags of Seq2SeqTrainingArguments work. Model, tokenizer and report.json (cost and scores) are written to
--output_dir.
"""

from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from modeling_yan.common.arguments import ModelArguments, parse_arguments, run_script
from modeling_yan.training.flow import FlowDataArguments, train_flow


def main() -> None:
    parser = HfArgumentParser((ModelArguments, FlowDataArguments, Seq2SeqTrainingArguments))
    train_flow(*parse_arguments(parser))


if __name__ == "__main__":
    run_script(main)
