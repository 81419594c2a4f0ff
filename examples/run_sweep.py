"""
Trains and measures variants of one recipe, each in several seeds: what changes quality, one thing at a time.

    python examples/run_sweep.py configuration/sweeps/e2e_design.yaml --output_dir outputs/sweep-e2e --results results/sweep_e2e_design.json

The file names a recipe of run_flow.py, what all runs change in it, and what each variant changes besides (flags of run_flow.py;
config_overrides are merged). `evaluation` holds flags of run_evaluation.py. What is finished is not run again, so an interrupted sweep goes on.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from modeling_yan.evaluation.report import sweep_table
from modeling_yan.training.scripts import run_script

SCRIPTS = Path(__file__).resolve().parent
KEYS = {"recipe", "common", "variants", "seeds", "evaluation"}


def merge(*parts: dict) -> dict:
    """Later ones win; their config_overrides are merged."""
    overrides = {k: v for part in parts for k, v in part.get("config_overrides", {}).items()}
    return {k: v for part in parts for k, v in part.items()} | ({"config_overrides": overrides} if overrides else {})


def as_flags(options: dict) -> list[str]:
    flags = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return flags


def load_sweep(path: Path) -> dict:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(sweep, dict) or not sweep.get("variants") or not {"recipe"} <= set(sweep) <= KEYS:
        raise ValueError(f"{path} must hold recipe, variants and, if wanted, {sorted(KEYS - {'recipe', 'variants'})}")
    if not Path(sweep["recipe"]).is_file():
        raise ValueError(f"{path}: recipe {sweep['recipe']!r} is no file")
    return {"common": {}, "seeds": [0], "evaluation": {}, **sweep}


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
            measured = folder / "quality.json"
            changed = merge(
                {"config_overrides": recipe.get("config_overrides", {})},
                sweep["common"],
                changes or {},
                {"seed": seed},
            )
            flags = as_flags({**changed, "output_dir": str(folder)})
            train = ["examples/run_flow.py", sweep["recipe"], *flags]
            measure = ["examples/run_evaluation.py", "--model", str(folder), "--output", str(measured)]
            measure += as_flags({"task": recipe["task"], "dataset_name": recipe["dataset_name"], **sweep["evaluation"]})
            for command, product in ((train, folder / "report.json"), (measure, measured)):
                if not product.is_file():
                    done = subprocess.run([sys.executable, SCRIPTS.parent / command[0], *command[1:]])
                    if done.returncode:
                        raise ValueError(
                            f"variant {name}, seed {seed} ended with status {done.returncode}: {shlex.join(command)}"
                        )
            row = json.loads(measured.read_text(encoding="utf-8"))
            row["training"] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            rows.append({"variant": name, "command": f"python {shlex.join(train)}", **row, "seed": seed})
            arguments.results.parent.mkdir(parents=True, exist_ok=True)
            arguments.results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(sweep_table(rows))


if __name__ == "__main__":
    run_script(main)
