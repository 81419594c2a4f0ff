"""
Stages 2 and 3: trains the flow on source-target pairs, from an autoencoder, from another YAN, or from scratch.

    python examples/run_flow.py --train_file my.csv --source_column question --target_column answer
    python examples/run_flow.py configuration/training/flow_e2e.yaml
    python examples/run_flow.py --model_name_or_path outputs/autoencoder --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --output_dir outputs/flow --max_steps 2000

Without a recipe, what is not given is that of configuration/training/default.yaml. All flags of
Seq2SeqTrainingArguments work. Model, tokenizer, task.yaml and report.json (cost and scores) are written to
--output_dir. `yan train` is the same.
"""

from modeling_yan.common.arguments import run_script
from modeling_yan.training.flow import main

if __name__ == "__main__":
    run_script(main)
