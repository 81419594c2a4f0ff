"""
Clean texts for a model that restores punctuation, capitals and typing errors: documents are cut into texts of one to a
few sentences, split by document.

    python examples/prepare_restoration.py --documents ../shared/data/squad:context my.jsonl:body books/ \
        --output_dir outputs/clean
    python examples/run_flow.py configuration/training/restore.yaml --dataset_name outputs/clean

`--documents` takes data sets (a folder or Hub name, and a column behind a colon), and folders of text files and of
Standard Ebooks, whose chapters are documents. Splits that a data set has stay; where it has `train` alone, `--held_out`
of its documents go to validation and as many to test. Rows without a text are left out and counted. The words of the
training texts are written to lexicon.txt, and those of `--word_counts`, which know the rare words that the texts lack:
files with a word and its count a line, such as `frequency_dictionary_en_82_765.txt` of symspellpy.
"""

import argparse
import html
import random
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, Value

from modeling_yan.common.arguments import run_script
from modeling_yan.common.files import check_destination, whole_folder
from modeling_yan.common.help import ScriptHelp
from modeling_yan.data.loading import load_data
from modeling_yan.data.windows import split_windows
from modeling_yan.lexicon_yan import FILE as LEXICON
from modeling_yan.lexicon_yan import Lexicon

# Pages of a Standard Ebook that are no text of its author.
FRONT_AND_BACK = (
    "colophon",
    "imprint",
    "titlepage",
    "halftitlepage",
    "uncopyright",
    "endnotes",
    "dedication",
    "epigraph",
)


def chapters(folder: Path) -> Iterator[str]:
    """The chapters of all Standard Ebooks below a folder, a paragraph a line."""
    for path in sorted(folder.rglob("src/epub/text/*.xhtml")):
        if path.stem in FRONT_AND_BACK:
            continue
        page = path.read_text(encoding="utf-8")
        paragraphs = re.findall(r"<p[^>]*>(.*?)</p>", page, re.DOTALL)
        yield "\n".join(" ".join(html.unescape(re.sub(r"<[^>]+>", "", p)).split()) for p in paragraphs)


def text_files(folder: Path) -> Iterator[str]:
    """The text files below a folder, a paragraph a line; paragraphs part at blank lines where there are any."""
    for path in sorted(folder.rglob("*.txt")):
        if path.name == LEXICON:
            continue
        text = path.read_text(encoding="utf-8")
        paragraphs = re.split(r"\n\s*\n", text.strip())
        yield text if len(paragraphs) == 1 else "\n".join(" ".join(p.split()) for p in paragraphs)


def read_documents(given: str) -> dict[str, list[str]]:
    """
    Name of a split -> documents.

    Args:
        given: `DATA:COLUMN`, or a folder of text files or of Standard Ebooks.

    Raises:
        ValueError: for a column that is not there or holds no texts, and a folder without texts.
    """
    if Path(given).is_dir():
        found = [*chapters(Path(given)), *text_files(Path(given))]
        if not found:
            raise ValueError(
                f"--documents {given} holds no text files (*.txt) and no Standard Ebooks; give DATA:COLUMN"
            )
        return {"train": found}
    name, _, column = given.rpartition(":")
    if not name:
        raise ValueError(f"--documents {given} names no column; give it as DATA:COLUMN, or a folder of texts")
    documents = {}
    for split, rows in load_data(name).items():
        if column not in rows.column_names:
            raise ValueError(f"--documents {given}: {name} has no column {column!r}; it has {rows.column_names}")
        kind = getattr(rows.features[column], "feature", rows.features[column])
        if not isinstance(kind, Value) or kind.dtype not in ("string", "large_string"):
            raise ValueError(f"--documents {given}: column {column!r} of split {split} holds no texts, but {kind}")
        texts = [" ".join(filter(None, v)) if isinstance(v, list) else v for v in rows[column]]
        documents[split] = [text for text in texts if text]
        if len(documents[split]) < len(texts):
            print(f"{given}, {split}: {len(texts) - len(documents[split]):,} of {len(texts):,} rows have no text")
    return documents


def windows_by_split(documents: dict[str, list[str]], arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Texts of each split; some of the training documents are held out where there are no other splits."""
    options = {"seed": arguments.seed, "most_words": arguments.most_words}
    if list(documents) == ["train"]:
        held_out = {"validation": arguments.held_out, "test": arguments.held_out}
        return split_windows(documents["train"], held_out, **options)
    return {split: split_windows(texts, {}, **options).get("train", []) for split, texts in documents.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--documents", nargs="+", required=True, help="DATA:COLUMN, or a folder of texts or books")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to be written, new or empty")
    parser.add_argument("--held_out", type=float, default=0.02, help="share of documents in validation, and in test")
    parser.add_argument("--most_words", type=int, default=48, help="words of the longest text")
    parser.add_argument(
        "--word_counts", nargs="*", type=Path, default=[], help="files of words and how frequent they are"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the texts' lengths")
    arguments = parser.parse_args()
    if not 0 <= arguments.held_out < 0.5:
        raise ValueError(f"--held_out {arguments.held_out} must be at least 0 and less than 0.5")
    check_destination(arguments.output_dir)
    word_counts = [Lexicon.from_counts(path) for path in arguments.word_counts]
    texts: dict[str, list[dict]] = {}
    for given in arguments.documents:
        for split, rows in windows_by_split(read_documents(given), arguments).items():
            source = Path(given).name.partition(":")[0]
            texts.setdefault(split, []).extend({"text": row, "source": source} for row in rows)
    if not texts.get("train"):
        raise ValueError(
            f"--documents {' '.join(arguments.documents)} hold no clean training texts; their splits are "
            f"{sorted(texts)}: give documents with a split 'train', of whole sentences"
        )
    # What many people say is in several documents.
    trained = {row["text"] for row in texts.get("train", [])}
    for split in texts.keys() - {"train"}:
        texts[split] = [row for row in texts[split] if row["text"] not in trained]
    texts = {split: rows for split, rows in texts.items() if rows}
    with whole_folder(arguments.output_dir) as folder:
        for split, rows in texts.items():
            # The first rows of a split are then from everywhere.
            random.Random(arguments.seed).shuffle(rows)
            Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
        own = Lexicon.count(row["text"] for row in texts["train"])
        # Other texts count as much as these, however many they were.
        sum((other.scaled(own.total) for other in word_counts), own).save_pretrained(folder)
    for split, rows in texts.items():
        print(f"{split}: {len(rows):,} texts, {sum(len(row['text'].split()) for row in rows):,} words")


if __name__ == "__main__":
    run_script(main)
