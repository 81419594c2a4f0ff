r"""
Trains and measures variants of one recipe, each in several seeds: what changes quality, one thing at a time.

    python benchmarks/run_sweep.py configuration/sweeps/e2e_design.yaml --output_dir outputs/sweep-e2e \
        --results benchmarks/results/sweep_e2e_design.json

The file names a recipe of run_flow.py, what all runs change in it, and what each variant changes besides (flags of
run_flow.py; config_overrides are merged key by key). `evaluation` holds flags of run_evaluation.py. What is finished is
not run again, so an interrupted sweep goes on.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from modeling_yan.common.arguments import as_flags, run_script
from modeling_yan.common.overrides import merge_options, nest_training_settings
from modeling_yan.common.reports import read_report, write_report
from modeling_yan.evaluation.report import sweep_table

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"recipe", "common", "variants", "seeds", "evaluation"}


def merge(*parts: dict) -> dict:
    """Options of run_flow.py: later ones win; config_overrides are merged key by key, training settings nested."""
    nested = [
        {**part, "config_overrides": nest_training_settings(part["config_overrides"])}
        if part.get("config_overrides")
        else part
        for part in parts
    ]
    return merge_options(*nested)


def load_sweep(path: Path) -> dict:
    """
    A sweep with the parts that it leaves out.

    Raises:
        ValueError: for unknown or missing keys, and a recipe that is no file.
    """
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(sweep, dict) or not sweep.get("variants") or not {"recipe"} <= set(sweep) <= KEYS:
        raise ValueError(f"{path} must hold recipe, variants and, if wanted, {sorted(KEYS - {'recipe', 'variants'})}")
    if not Path(sweep["recipe"]).is_file():
        raise ValueError(f"{path}: recipe {sweep['recipe']!r} is no file")
    return {"common": {}, "seeds": [0], "evaluation": {}, **sweep}


def run_unless_done(command: list[str], product: Path) -> None:
    """
    Runs a script of the repository, unless what it writes at its end is there.

    Raises:
        ValueError: if the script fails.
    """
    if product.is_file():
        return
    done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]])
    if done.returncode:
        raise ValueError(f"the run for {product} ended with status {done.returncode}: {shlex.join(command)}")


def measure_variant(sweep: dict, recipe: dict, changes: dict, folder: Path) -> dict:
    """Trains and evaluates one variant into a folder: what run_evaluation.py reports, and the training command."""
    measured = folder / "quality.json"
    overrides = {"config_overrides": recipe.get("config_overrides", {})}
    flags = as_flags(merge(overrides, sweep["common"], changes, {"output_dir": str(folder)}))
    train = ["examples/run_flow.py", sweep["recipe"], *flags]
    data = {"task": recipe["task"], "dataset_name": recipe["dataset_name"]}
    evaluation = as_flags({"model": str(folder), "output": str(measured), **data, **sweep["evaluation"]})
    run_unless_done(train, folder / "report.json")
    run_unless_done(["examples/run_evaluation.py", *evaluation], measured)
    report = json.loads(measured.read_text(encoding="utf-8"))
    return {"command": f"python {shlex.join(train)}", **report, "training": read_report(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a YAML file")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the models")
    parser.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    sweep = load_sweep(arguments.sweep)
    recipe = yaml.safe_load(Path(sweep["recipe"]).read_text(encoding="utf-8"))
    rows = []
    for name, changes in sweep["variants"].items():
        for seed in sweep["seeds"]:
            folder = arguments.output_dir / f"{name}-{seed}"
            row = measure_variant(sweep, recipe, {**(changes or {}), "seed": seed}, folder)
            rows.append({"variant": name, **row, "seed": seed})
            write_report(rows, arguments.results)
    print(sweep_table(rows))


if __name__ == "__main__":
    run_script(main)
