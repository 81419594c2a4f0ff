"""
Source-target tasks as data: a YAML file says which columns of a data set make the source and the target.

    task = Task.load("squad")                       # configuration/tasks/squad.yaml, or a path
    rows = task.build(load_dataset("squad")["train"])   # columns: source, target, references
"""

import functools
import logging
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from string import Formatter

import yaml
from datasets import Dataset, DatasetDict

from modeling_yan.common.paths import configuration_path
from modeling_yan.data.corruption import Corruption, corrupt
from modeling_yan.data.loading import first_rows, load_data, select_split
from modeling_yan.data.masking import mask_words
from modeling_yan.input_checks_yan import check_number
from modeling_yan.lexicon_yan import Lexicon

logger = logging.getLogger(__name__)
METRICS = ("bleu", "rouge", "exact_match")


class BadRow(ValueError):
    """A row that has the columns, but nothing in them that the task can use."""


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text.strip())


def _without_last_word(text: str) -> str:
    before, *last = text.rsplit(maxsplit=1)
    if not last:
        raise BadRow("the text has one word: nothing would be left before it")
    return before


def _mask_sentence(values: list[str], *, mask_token: str, index: int) -> str:
    sentences = _sentences(values[0])
    if index >= len(sentences):
        raise BadRow(f"the text has {len(sentences)} sentences, none at index {index}")
    return " ".join([*sentences[:index], mask_token, *sentences[index + 1 :]])


def _mask_spans(text: str, *, mask_token: str, rate: float = 0.08, max_span: int = 3, seed: int = 0) -> str:
    """
    Spans of 1 to `max_span` words, about `rate` of all words and at least one, become one mask token each. White space
    is kept. The spans depend on the seed and the text alone.
    """
    words = text.split()
    if len(words) < 2:
        raise BadRow("the text has less than two words: nothing would be left beside the mask")
    draw = random.Random(f"{seed} {text}")
    masked: set[int] = set()
    wanted = max(1, round(rate * len(words)))
    for _ in range(20 * wanted):
        length = min(draw.randint(1, max_span), wanted - len(masked))
        start = draw.randrange(len(words) - length + 1)
        # Spans that touched would be one.
        if length and masked.isdisjoint(range(start - 1, start + length + 1)):
            masked.update(range(start, start + length))
    return mask_words(text, masked, mask_token)


@functools.cache
def _read_lexicon(folder: str) -> Lexicon:
    lexicon = Lexicon.from_pretrained(folder) if Path(folder).is_dir() else None
    if lexicon is None:
        raise ValueError(f"lexicon={folder} holds no lexicon.txt; give a folder of examples/prepare_restoration.py")
    return lexicon


def _corrupt(text: str, *, seed: int = 0, lexicon: str | None = None, mended: float = 1.0, **rates: float) -> str:
    """
    The text with errors (`corruption.py`), which depend on the seed and the text alone.

    Args:
        lexicon: folder of a lexicon that then mends what it can, as `restore()` does before a model reads.
        mended: share of texts that it does so for.
    """
    draw = random.Random(f"{seed} {text}")
    corrupted = corrupt(text, Corruption(**rates), draw)
    if lexicon is not None and draw.random() < mended:
        corrupted = _read_lexicon(lexicon).mended(corrupted)
    if not corrupted.strip():
        raise BadRow(f"the text {text!r:.60} holds nothing but marks")
    return corrupted


def _label_name(values: list, *, names: list[str], **_) -> str:
    """
    Raises:
        BadRow: for a label that has no name; data sets hide those of a test split as -1.
    """
    try:
        label = int(values[0])
    except (TypeError, ValueError):
        raise BadRow(f"the label {values[0]!r} is no number") from None
    if not 0 <= label < len(names):
        raise BadRow(
            f"the label {label} has no name, names are those of 0 to {len(names) - 1}; labels of -1 are hidden: use "
            "another split, or `bad_rows: drop` in the task file"
        )
    return names[label]


# Each takes the column's values as a list and the YAML options by keyword.
DERIVED_COLUMNS: dict[str, Callable] = {
    "first": lambda values, **_: values[0],
    "shortest": lambda values, **_: min(values, key=len),
    "all": lambda values, **_: list(values),
    "join": lambda values, **_: " ".join(values),
    "label": lambda values, **options: f"{values[0]} {_label_name(values, **options)}",
    "label_name": _label_name,
    "last_word": lambda values, **_: values[0].split()[-1],
    "without_last_word": lambda values, **_: _without_last_word(values[0]),
    "mask_spans": lambda values, *, mask_token, **options: _mask_spans(values[0], mask_token=mask_token, **options),
    "corrupt": lambda values, *, mask_token, **options: _corrupt(values[0], **options),
    "mask_sentence": lambda values, *, mask_token, index: _mask_sentence(values, mask_token=mask_token, index=index),
}
# Those that put the mask token in the place of words.
MASKING_COLUMNS = ("mask_spans", "mask_sentence")
# Those that take values of any kind; the others take texts.
UNCHANGED_COLUMNS = ("first", "all", "label", "label_name")
# Those that draw, by their option `seed`.
DRAWN_COLUMNS = ("mask_spans", "corrupt")
# Options that a task file may give to each function beside its column, and those that it must.
COLUMN_OPTIONS = {
    "label": ("names",),
    "label_name": ("names",),
    "mask_spans": ("rate", "max_span", "seed"),
    "corrupt": (*(rate.name for rate in fields(Corruption)), "seed", "lexicon", "mended"),
    "mask_sentence": ("index",),
}
NEEDED_OPTIONS = {"label": ("names",), "label_name": ("names",), "mask_sentence": ("index",)}


def _check_form(side: str, form: object) -> None:
    """Whether a format string holds nothing but names of columns."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(form) if name is not None]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{side}={form!r} must be a format string such as '{{question}}': {error}") from None
    if any(not name or name.isdigit() for name in names):
        raise ValueError(f"{side}={form!r} has a field without the name of a column; write {{{{ and }}}} for braces")


def _check_derived(column: str, options: object) -> None:
    """Whether a derived column has a function, what it is made of, and the options of its function."""
    if not isinstance(options, dict) or options.get("function") not in DERIVED_COLUMNS:
        function = options.get("function") if isinstance(options, dict) else options
        raise ValueError(f"{column} has function {function!r}; known are {sorted(DERIVED_COLUMNS)}")
    function, given = options["function"], set(options) - {"function", "column", "columns"}
    if ("column" in options) == ("columns" in options):
        raise ValueError(f"{column}: {function} needs a `column`, or a list of `columns`")
    known = COLUMN_OPTIONS.get(function, ())
    if given - set(known):
        raise ValueError(f"{column}: {function} has no options {sorted(given - set(known))}; known are {list(known)}")
    missing = set(NEEDED_OPTIONS.get(function, ())) - given
    if missing:
        raise ValueError(f"{column}: {function} needs the options {sorted(missing)}")


def _lookup(row: dict, dotted: str):
    if dotted in row:
        return row[dotted]
    value = row
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"column {dotted!r} is not in the data; it has {sorted(row)}")
        value = value[key]
    return value


@dataclass(frozen=True)
class Task:
    """
    A data set read as source-target pairs.

    Args:
        source, target: format strings over the columns, the derived columns and `mask_token`.
        derive: derived columns, `name -> {function, column | columns, **options}`; functions: `DERIVED_COLUMNS`, their
            options: `COLUMN_OPTIONS`.
        references: a column, derived or not, holding all acceptable targets of a row, or one text; the target alone
            where none is named, and in rows where it is empty.
        max_source_length, max_target_length: in tokens, special tokens included.
        metric: "bleu", "rouge" or "exact_match", the score that tables show.
        truncation_side: where a source that is too long is cut, "right" or "left"; "left" keeps a question that stands
            last.
        redraw: whether training rows are derived anew each time they are read, so that no two epochs are alike.
            Held-out rows are derived once.
        bad_rows: "raise", or "drop" rows that cannot be rendered, with a warning that counts them.
        dataset: name of the data set that the task was written for, for people; which data is read is an argument.
    """

    name: str
    source: str
    target: str
    derive: dict[str, dict] = field(default_factory=dict)
    references: str | None = None
    max_source_length: int = 512
    max_target_length: int = 128
    metric: str = "rouge"
    truncation_side: str = "right"
    redraw: bool = False
    bad_rows: str = "raise"
    dataset: str | None = None

    @classmethod
    def load(cls, name_or_path: str) -> "Task":
        """
        Reads `configuration/tasks/<name>.yaml` or the file at a path.

        Raises:
            ValueError: for unknown or missing keys, and for values that they cannot have.
        """
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = configuration_path("tasks", f"{name_or_path}.yaml")
        if not path.is_file():
            raise ValueError(f"task={name_or_path} is no file in {Path.cwd()}; give the path of one that is there")
        try:
            options = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path.name} is no YAML: {error}") from error
        if not isinstance(options, dict):
            raise ValueError(f"{path.name} must hold keys and values")
        known = {f.name for f in fields(cls)} - {"name"}
        unknown = set(options) - known
        if unknown:
            raise ValueError(f"{path.name}: unknown keys {sorted(unknown)}; known are {sorted(known)}")
        missing = {"source", "target"} - set(options)
        if missing:
            raise ValueError(f"{path.name}: {sorted(missing)} must be given")
        try:
            return cls(name=path.stem, **options)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes a task file that `load` reads."""
        options = {name: value for name, value in asdict(self).items() if name != "name" and value is not None}
        Path(path).write_text(yaml.safe_dump(options, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def __post_init__(self):
        choices = {"bad_rows": ("raise", "drop"), "truncation_side": ("right", "left"), "metric": METRICS}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)!r} must be one of {', '.join(values)}")
        for name in ("max_source_length", "max_target_length"):
            check_number(name, getattr(self, name), allowed=lambda x: x >= 1, expected="a number of tokens", whole=True)
        for side in ("source", "target"):
            _check_form(side, getattr(self, side))
        if not isinstance(self.derive, dict):
            raise ValueError(f"derive={self.derive!r} must hold a name for each derived column")
        for column, options in self.derive.items():
            _check_derived(column, options)

    def with_lengths(self, max_source_length: int | None = None, max_target_length: int | None = None) -> "Task":
        """The same task with other lengths in tokens, where they are given."""
        lengths = {"max_source_length": max_source_length, "max_target_length": max_target_length}
        return replace(self, **{name: value for name, value in lengths.items() if value})

    def without_answers(self) -> "Task":
        """The same task for rows that have no answers yet: it reads the columns of the source alone, as target, too."""
        needed = {name for _, name, _, _ in Formatter().parse(self.source)}
        derive = {name: options for name, options in self.derive.items() if name in needed}
        return replace(self, target=self.source, references=None, derive=derive)

    @property
    def masks_text(self) -> bool:
        """Whether a mask token stands in the place of words."""
        names = {name for form in (self.source, self.target) for _, name, _, _ in Formatter().parse(form)}
        return "mask_token" in names or any(own["function"] in MASKING_COLUMNS for own in self.derive.values())

    def render(self, row: dict, mask_token: str | None = None, seed: int | None = None) -> dict:
        """
        One row of the data set -> `{"source": str, "target": str, "references": [str, …]}`.

        Args:
            mask_token: the tokenizer's, where the task masks text.
            seed: of derived columns that are drawn; their own by default.

        Raises:
            BadRow: where the row holds nothing that the task can use.
            ValueError: where the task does not fit the columns, or needs a mask token and there is none.
        """
        if mask_token is None and self.masks_text:
            raise ValueError(
                f"task {self.name} puts a mask token in the place of words, and the tokenizer has none; set "
                "tokenizer.mask_token and save it, or take another task"
            )
        derived = {name: self._derive(name, row, mask_token, seed) for name in self.derive}
        columns = {**row, "mask_token": mask_token, **derived}
        texts = {side: self._fill(side, columns) for side in ("source", "target")}
        for side, text in texts.items():
            if not text.strip():
                raise BadRow(f"task {self.name}: the {side} of a row is empty: {row}")
        references = [] if self.references is None else self._references(self._column(self.references, columns))
        return {**texts, "references": references or [texts["target"]]}

    def _references(self, value: object) -> list[str]:
        """The texts of a column of references; those that are missing or blank are left out."""
        values = [own for own in (value if isinstance(value, list) else [value]) if own is not None]
        texts = [self._text(own, self.references, "references must be texts") for own in values]
        return [text for text in texts if text.strip()]

    def _text(self, value: object, column: str, needed: str) -> str:
        """
        A value of a column as text.

        Raises:
            ValueError: if it is neither text nor a number.
        """
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"task {self.name}: {needed}, and column {column!r} holds a {type(value).__name__}, {value!r:.60}; "
                f"derive text from it (functions: {sorted(DERIVED_COLUMNS)})"
            )
        return str(value)

    def _derive(self, name: str, row: dict, mask_token: str | None, seed: int | None = None):
        """The value of a derived column."""
        options = dict(self.derive[name])
        if seed is not None and options["function"] in DRAWN_COLUMNS:
            options["seed"] = seed
        function = options.pop("function")
        wanted, column = options.pop("columns", None), options.pop("column", None)
        value = [_lookup(row, c) for c in wanted] if wanted else _lookup(row, column)
        values = value if isinstance(value, list) else [value]
        if not values:
            raise BadRow(f"nothing to derive {name!r} from: the column is an empty list")
        if any(value is None or value == "" for value in values):
            raise BadRow(f"nothing to derive {name!r} from: the column is empty")
        if function not in UNCHANGED_COLUMNS:
            place = ", ".join(wanted) if wanted else column
            values = [self._text(own, place, f"{function!r} of {name!r} needs texts") for own in values]
            if not any(text.strip() for text in values):
                raise BadRow(f"nothing to derive {name!r} from: column {place!r} is blank")
        return DERIVED_COLUMNS[function](values, mask_token=mask_token, **options)

    def _column(self, name: str, columns: dict):
        """
        The value of a column, of the data or derived.

        Raises:
            ValueError: if there is none of that name.
        """
        if name not in columns:
            known = sorted(set(columns) - {"mask_token"})
            raise ValueError(f"task {self.name}: column {name!r} is not in the data; it has {known}")
        return columns[name]

    def _fill(self, side: str, columns: dict) -> str:
        """The format string of a side with the columns in it."""
        form = getattr(self, side)
        for name in {part[1] for part in Formatter().parse(form) if part[1]}:
            value = self._column(name, columns)
            if value is None:
                raise BadRow(f"task {self.name}: column {name!r} is empty")
            if not isinstance(value, str | int | float):
                raise ValueError(
                    f"task {self.name}: column {name!r} holds a {type(value).__name__}, {value!r:.60}, not text; "
                    f"derive text from it (functions: {sorted(DERIVED_COLUMNS)})"
                )
        return form.format(**columns)

    def build(self, dataset: Dataset, mask_token: str | None = None) -> Dataset:
        """
        A data set -> columns `source`, `target`, `references`; with `redraw` also `row`, of which a source can be
        derived anew.

        Args:
            mask_token: the tokenizer's, where the task masks text.

        Raises:
            ValueError: naming the first bad row, counted from 1, or saying that none is good; and as `render`.
        """
        first_error = None

        def render(row: dict, index: int) -> dict:
            nonlocal first_error
            kept = {"row": row} if self.redraw else {}
            try:
                return {**self.render(row, mask_token), **kept}
            except BadRow as error:
                if self.bad_rows == "raise":
                    raise ValueError(
                        f"row {index + 1}: {error}; mend or delete the row, or write `bad_rows: drop` in the task file"
                    ) from None
                first_error = first_error or f"row {index + 1}: {error}"
                return {"source": "", "target": "", "references": [""], **kept}

        built = dataset.map(
            render,
            with_indices=True,
            remove_columns=dataset.column_names,
            desc=f"task {self.name}",
            load_from_cache_file=False,
        )
        if first_error is None:
            return built
        kept = built.filter(lambda row: bool(row["source"]))
        if not len(kept):
            raise ValueError(f"task {self.name}: none of the {len(built)} rows can be used; {first_error}")
        logger.warning(f"task {self.name}: {len(built) - len(kept)} of {len(built)} rows dropped; {first_error}")
        return kept


def load_splits(dataset_name: str, task: Task, mask_token: str | None = None) -> DatasetDict:
    """
    Every split of a data set, read as a task.

    Args:
        dataset_name: as `load_data` takes it.
        task: how to read it.
        mask_token: the tokenizer's mask token, put where a task masks text.

    Raises:
        ValueError: if the folder holds no data or the columns do not fit the task.
    """
    return DatasetDict({name: task.build(split, mask_token) for name, split in load_data(dataset_name).items()})


def group_references(dataset: Dataset) -> Dataset:
    """Joins rows that share a source into one row that holds all their references, in order of first appearance."""
    grouped: dict[str, list[str]] = {}
    for source, references in zip(dataset["source"], dataset["references"], strict=True):
        grouped.setdefault(source, []).extend(references)
    rows = {"source": list(grouped), "references": [list(dict.fromkeys(r)) for r in grouped.values()]}
    return Dataset.from_dict({**rows, "target": [r[0] for r in rows["references"]]})


def load_rows(
    dataset_name: str, task: Task, split: str, *, mask_token: str | None = None, max_rows: int | None = None
) -> Dataset:
    """
    The rows of one split to be answered and scored, a row for each source (`group_references`).

    Args:
        dataset_name: as `load_data` takes it.
        max_rows: the first ones only.

    Raises:
        ValueError: if there is no such split, or the columns do not fit the task.
    """
    rows = select_split(load_data(dataset_name), split, dataset_name)
    return first_rows(group_references(task.build(rows, mask_token)), max_rows)


def evaluation_rows(splits: Mapping[str, Dataset], max_rows: int | None = None) -> dict[str, Dataset]:
    """
    The validation and test splits, as far as there are any, with a row for each source; the first `max_rows` of each.
    """
    names = [name for name in ("validation", "test") if name in splits]
    return {name: first_rows(group_references(splits[name]), max_rows) for name in names}
