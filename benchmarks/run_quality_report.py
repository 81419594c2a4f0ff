"""
Tables of what run_evaluation.py and run_sweep.py measured: printed, or put in their places on a page.

    python benchmarks/run_quality_report.py benchmarks/results/quality_e2e.json
    python benchmarks/run_quality_report.py --page docs/quality.md
"""

import argparse
import json
from pathlib import Path

from modeling_yan.common.arguments import run_script
from modeling_yan.evaluation.report import fill_page, tables


def table_of(paths: str) -> str:
    return tables(*(json.loads(Path(path).read_text(encoding="utf-8")) for path in paths.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="files of the two, to print")
    parser.add_argument("--page", type=Path, help="Markdown whose places name such files, from the working directory")
    arguments = parser.parse_args()
    if not arguments.results and arguments.page is None:
        raise ValueError("nothing to do: give results to print, or a --page to fill")
    for path in arguments.results:
        print(table_of(str(path)))
    if arguments.page is not None:
        page = arguments.page.read_text(encoding="utf-8")
        arguments.page.write_text(fill_page(page, table_of), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
