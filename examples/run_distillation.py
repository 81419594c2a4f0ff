"""
Turns a fine-tuned causal or sequence-to-sequence model into a YAN: writes the teacher's answers as a data set, one for
each distinct source, and trains YAN on them. Interrupted writing resumes.

    python examples/run_distillation.py --teacher outputs/gpt2-e2e --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --distilled_dir outputs/distilled-e2e \
        --model_name_or_path outputs/autoencoder --output_dir outputs/yan-e2e
"""

from modeling_yan.common.arguments import run_script
from modeling_yan.training.distillation import main

if __name__ == "__main__":
    run_script(main)
