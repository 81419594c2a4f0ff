r"""
Stage 1: trains the autoencoder by text infilling.

    python examples/run_autoencoder.py configuration/training/autoencoder_e2e.yaml
    python examples/run_autoencoder.py --preset yan-tiny --train_tokenizer 2048 --dataset_name ../shared/data/e2e_nlg \
        --text_columns meaning_representation human_reference --output_dir outputs/autoencoder --max_steps 1000

All flags of TrainingArguments work. Model, tokenizer and report.json (cost and scores) are written to --output_dir.
"""

from transformers import HfArgumentParser, TrainingArguments

from modeling_yan.common.arguments import ModelArguments, parse_arguments, run_script
from modeling_yan.training.autoencoder import AutoencoderDataArguments, train_autoencoder


def main() -> None:
    parser = HfArgumentParser((ModelArguments, AutoencoderDataArguments, TrainingArguments), description=__doc__)
    train_autoencoder(*parse_arguments(parser))


if __name__ == "__main__":
    run_script(main)
