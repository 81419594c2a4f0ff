r"""
Quality of a YAN on a task: steps, length modes and numbers of candidates, the autoencoder's ceiling, other ways to
sample (--variants), and baselines. `benchmarks/run_quality_report.py` makes tables of what it writes.

    python examples/run_evaluation.py --model examples/models/yan-e2e --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --baselines outputs/gpt2-e2e outputs/bart-e2e \
        --output benchmarks/results/quality_e2e.json

`yan evaluate` is the same.
"""

from modeling_yan.common.arguments import run_script
from modeling_yan.evaluation.evaluate import main

if __name__ == "__main__":
    run_script(main)
