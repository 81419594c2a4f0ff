"""Tables of `benchmarks/results/quality_*.json`, and the page that holds them."""

import re
from collections.abc import Callable, Sequence
from statistics import mean

METRICS = {"bleu": "BLEU-4", "rouge": "ROUGE-L", "exact_match": "exact match"}
SCORES = {"bleu": "bleu", "rouge": "rougeL", "exact_match": "exact_match"}
NAMES = {"gpt2": "GPT-2-shaped", "bart": "BART-shaped", "masked_diffusion": "masked diffusion"}
CEILING = "autoencoder of the first reference"
PLACE = re.compile(r"(<!-- table: ([^>]+?)\s*-->\n).*?(<!-- end of table -->)", re.DOTALL)


def _system_name(folder: str) -> str:
    return next((name for key, name in NAMES.items() if folder.startswith(key)), folder)


def _with_interval(row: dict, score: str) -> str:
    low, high = row[f"{score}_interval"]
    return f"{row[score]:.1f} [{low:.1f}, {high:.1f}]"


def _length_name(row: dict) -> str:
    candidates = row.get("num_length_candidates", 1)
    name = {"oracle": "length of the first reference given", "canvas": "fixed canvas"}.get(
        row["length"], "length predicted"
    )
    return f"{name}, best of {candidates}" if candidates > 1 else name


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cost(training: dict | None, name: str, form: str, scale: float = 1.0) -> str:
    """A stage and those before it where a report counts them, else the stage alone."""
    value = (training or {}).get(f"total_{name}", (training or {}).get(name))
    return "not counted" if value is None else form.format(value / scale)


def _own_name(report: dict) -> str | None:
    """Folder of the model that was evaluated, among those whose training is known."""
    systems = {row["system"] for row in report["quality"]}
    return next((name for name in report["training"] if name not in systems), None)


def quality_tables(report: dict) -> str:
    """
    What `run_evaluation.py` wrote, as Markdown: systems at YAN's three steps, its few-step curve with predicted and
    given length, other ways to sample, where quality is lost, and speed.

    Args:
        report: the parsed JSON.
    """
    rows, score = report["quality"], SCORES[report["metric"]]
    metric = METRICS[report["metric"]]
    shared = [name for name in ("rougeL", "f1") if name != score]
    yan = [row for row in rows if row["system"] == "YAN" and "variant" not in row and row["num_candidates"] == 1]
    baselines = [row for row in rows if row["system"] not in ("YAN", CEILING)]

    def line(name: str, row: dict, training: dict | None, parameters: int, steps) -> list[str]:
        return [
            name,
            f"{parameters:,}",
            _cost(training, "train_flops", "{:.0f} TFLOP", 1e12),
            _cost(training, "train_minutes", "{:.1f}"),
            str(steps),
            _with_interval(row, score),
            *(f"{row[name]:.1f}" for name in shared),
            f"{row['self_bleu']:.0f}",
            f"{row['word_entropy']:.1f}",
        ]

    own = report["training"].get(_own_name(report))
    table = [
        line(f"YAN, {_length_name(row)}", row, own, report["parameters"], 3)
        for row in yan
        if row["num_inference_steps"] == 3
    ]
    table += [
        line(
            _system_name(row["system"]),
            row,
            report["training"].get(row["system"]),
            row["parameters"],
            row.get("num_inference_steps", "tokens"),
        )
        for row in baselines
    ]
    labels = {"rougeL": "ROUGE-L", "f1": "token F1"}
    header = ["system", "parameters", "training", "minutes", "steps", metric, *(labels[name] for name in shared)]
    rows_name = "longest sources" if report.get("longest_rows") else "rows"
    threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
    device = report.get("device", "CPU")
    where = threads if device == "CPU" else device
    text = f"{report['rows']:,} {rows_name} of the {report['split']} split, seed {report['seed']}, {where}.\n\n"
    text += _markdown([*header, "Self-BLEU", "word entropy"], table)

    steps = sorted({row["num_inference_steps"] for row in yan})
    curves: dict[str, dict[int, float]] = {}
    for row in yan:
        curves.setdefault(_length_name(row), {})[row["num_inference_steps"]] = row[score]
    text += f"\nSteps of YAN ({metric}):\n\n"
    text += _markdown(
        ["length", *map(str, steps)],
        [[name, *(f"{curve[step]:.1f}" if step in curve else "–" for step in steps)] for name, curve in curves.items()],
    )
    variants = [row for row in rows if "variant" in row]
    if variants:
        text += f"\nOther ways to sample ({metric}, otherwise as the first row above):\n\n"
        text += _markdown(
            ["options", metric], [[f"`{row['variant']}`", _with_interval(row, score)] for row in variants]
        )
    return text + "\n" + _losses(report, yan, score) + "\n" + _speeds(report["speed_batch_1"])


def _losses(report: dict, yan: list[dict], score: str) -> str:
    ceiling = next(row for row in report["quality"] if row["system"] == CEILING)
    plain = {row["length"]: row for row in yan if row["num_inference_steps"] == 3 and row["num_length_candidates"] == 1}
    reached = ", ".join(f"{row[score]:.1f} ({_length_name(row)})" for row in plain.values())
    text = (
        f"Where it is lost: the autoencoder gives back {ceiling[score]:.1f} of the first reference; three steps reach "
        f"{reached}."
    )
    if ceiling[score] < max((row[score] for row in plain.values()), default=0.0):
        text += " That is no ceiling: the decoder reads what the flow writes better than what the encoder does."
    head = report["length_head"]
    if head:
        text += (
            f" The most probable length is that of the first reference in {head['exact']:.0f} % of the rows, "
            f"{head['mean_absolute_error']:.1f} tokens off on average."
        )
    return text + "\n"


def _speeds(speed: dict) -> str:
    if not speed:
        return "Speed was not measured in this run.\n"
    parts = []
    for name, summary in speed.items():
        if name.startswith("YAN "):
            candidates, lengths = name.removeprefix("YAN ").split(" x ")
            name = f"YAN ({candidates} prior{'s' * (candidates != '1')}, {lengths} length{'s' * (lengths != '1')})"
        else:
            name = _system_name(name)
        parts.append(
            f"{name} {summary['latency_ms']['median']:.1f} ms, {summary['tokens_per_second']:,.0f} tokens per second"
        )
    return f"Speed in the same run, batch 1, each writing its own answers: {'; '.join(parts)}.\n"


def sweep_table(rows: list[dict]) -> str:
    """
    What `run_sweep.py` wrote, as Markdown: a line for each variant, means over its seeds and, behind several, the
    lowest and the highest.

    Args:
        rows: the parsed JSON, a row for each variant and seed.
    """
    metric, score = METRICS[rows[0]["metric"]], SCORES[rows[0]["metric"]]
    variants: dict[str, list[dict]] = {}
    for row in rows:
        variants.setdefault(row["variant"], []).append(row)

    def measured(row: dict) -> dict[str, float]:
        found = {}
        for q in row["quality"]:
            if q["system"] == "YAN" and ("variant" in q or q["num_candidates"] == 1):
                steps = q["num_inference_steps"]
                options = f", `{q['variant']}`" if "variant" in q else ""
                found[f"{_length_name(q)}{options}: {steps} step{'s' * (steps > 1)}"] = q[score]
        return found

    def line(name: str, runs: list[dict]) -> list[str]:
        cells = [name, str(len(runs)), f"{mean(r['training']['updates'] for r in runs):,.0f}"]
        cells += [f"{mean(r['training']['train_flops'] for r in runs) / 1e12:.1f}"]
        cells += [f"{mean(r['training']['train_minutes'] for r in runs):.1f}"]
        for column in columns:
            values = [measured(run)[column] for run in runs]
            spread = f" [{min(values):.1f}, {max(values):.1f}]" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}")
        return cells

    columns = list(measured(rows[0]))
    header = ["variant", "seeds", "updates", "TFLOP", "minutes", *columns]
    text = f"{metric} over {rows[0]['rows']:,} rows of the {rows[0]['split']} split.\n\n"
    return text + _markdown(header, [line(name, runs) for name, runs in variants.items()])


def summary_table(reports: Sequence[dict]) -> str:
    """
    A line for each of several files of `run_evaluation.py`: YAN in three steps with one length, and the best row of
    each baseline.

    Raises:
        ValueError: for a file without three steps of YAN.
    """
    tasks = [report["task"] for report in reports]

    def line(report: dict) -> list[str]:
        score = SCORES[report["metric"]]
        own = _own_name(report)
        best: dict[str, dict] = {}
        for row in report["quality"]:
            name = row["system"] if row["system"] == "YAN" else _system_name(row["system"])
            plain = row["system"] != "YAN" or (
                "variant" not in row
                and (row["num_candidates"], row["num_length_candidates"], row["num_inference_steps"]) == (1, 1, 3)
                and row["length"] != "oracle"
            )
            if plain and (name not in best or row[score] > best[name][score]):
                best[name] = row
        if "YAN" not in best:
            raise ValueError(f"the report on {report['task']} has no row of YAN in three steps with one length")
        task = report["task"] + (f" ({own})" if tasks.count(report["task"]) > 1 else "")
        cost = _cost(report["training"].get(own), "train_flops", "{:.0f}", 1e12)
        cells = (best.get(name) for name in ("YAN", *NAMES.values()))
        return [
            f"{task}, {report['split']}",
            METRICS[report["metric"]],
            f"{report['rows']:,}",
            *("–" if row is None else _with_interval(row, score) for row in cells),
            cost,
        ]

    header = ["task, split", "score", "rows", "YAN", *NAMES.values(), "TFLOP of YAN"]
    return _markdown(header, [line(report) for report in reports])


def tables(*reports: dict | list[dict]) -> str:
    """Of a file of `run_evaluation.py`, or of `run_sweep.py`; of several of the former their summary."""
    if len(reports) > 1:
        return summary_table(reports)
    return sweep_table(reports[0]) if isinstance(reports[0], list) else quality_tables(reports[0])


def fill_page(page: str, table_of: Callable[[str], str]) -> str:
    """
    Puts tables in their places, `<!-- table: NAMES -->` to `<!-- end of table -->`, and leaves all else as it is.

    Args:
        table_of: the table of NAMES, which white space separates.
    """
    return PLACE.sub(lambda match: f"{match[1]}{table_of(match[2])}{match[3]}", page)
