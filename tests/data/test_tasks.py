"""Task files against hand-made rows, and what messy data must say."""

import pytest
from datasets import Dataset

from modeling_yan.common.paths import configuration_path
from modeling_yan.data.tasks import DERIVED_COLUMNS, Task, group_references, load_splits
from modeling_yan.lexicon_yan import Lexicon

ROWS = {
    "e2e_nlg": (
        {"meaning_representation": "name[A]", "human_reference": "A is a pub."},
        ("name[A]", "A is a pub.", ["A is a pub."]),
    ),
    "sentiment": ({"sentence": "a nice film", "label": 1}, ("sentiment: a nice film", "positive", ["positive"])),
    "topic": ({"text": "Goal at the end", "label": 1}, ("topic: Goal at the end", "sports", ["sports"])),
    "entity": (
        {"title": "Loch Ness", "content": "A lake.", "label": 7},
        ("entity: Loch Ness A lake.", "nature", ["nature"]),
    ),
    "reading": (
        {"context": "Mary went home.", "question": "Where is Mary?", "answers": {"text": ["at home", "home"]}},
        ("question: Where is Mary? text: Mary went home.", "home", ["at home", "home"]),
    ),
    "babi_qa1": (
        {"context": "Mary went home.", "question": "Where is Mary?", "answer": "home"},
        (
            "####### DOCUMENT #######\n\nMary went home.\n\n####### QUESTION #######\n\nWhere is Mary?",
            "home",
            ["home"],
        ),
    ),
    "squad": (
        {"context": "C", "question": "Q", "answers": {"text": ["the long one", "short"], "answer_start": [0, 1]}},
        ("####### DOCUMENT #######\n\nC\n\n####### QUESTION #######\n\nQ", "short", ["the long one", "short"]),
    ),
    "sst2": ({"sentence": "fine", "label": 1}, ("####### DOCUMENT #######\n\nfine", "1 positive", ["1 positive"])),
    "ag_news": ({"text": "T", "label": 3}, ("####### DOCUMENT #######\n\nT", "3 Sci/Tech", ["3 Sci/Tech"])),
    "dbpedia_14": (
        {"title": "T", "content": "is a village.", "label": 8},
        ("####### DOCUMENT #######\n\nT is a village.", "8 Village", ["8 Village"]),
    ),
    "rocstories_last_word": (
        {"text": "One two. Three four."},
        ("One two. Three <mask>", "four.", ["four."]),
    ),
    "rocstories_middle_sentence": (
        {"text": "A a. B b! C c? D d. E e."},
        ("A a. B b! <mask> D d. E e.", "A a. B b! C c? D d. E e.", ["A a. B b! C c? D d. E e."]),
    ),
    "narrativeqa": (
        {"summary": "S", "question": "Q", "answer1": "a long answer", "answer2": "short"},
        ("####### SUMMARY #######\n\nS\n\n####### QUESTION #######\n\nQ", "short", ["a long answer", "short"]),
    ),
    "babi_qa2": (
        {"context": "Mary got milk.", "question": "Where is milk?", "answer": "home"},
        ("####### DOCUMENT #######\n\nMary got milk.\n\n####### QUESTION #######\n\nWhere is milk?", "home", ["home"]),
    ),
    "lambada": ({"text": "he said hello"}, ("he said <mask>", "hello", ["hello"])),
    "narrativeqa_infilling": ({"summary": "A  a"}, ("A  <mask>", "A  a", ["A  a"])),
    "restore_mended": ({"text": "Where is my cat?"}, ("where is my cat", "Where is my cat?", ["Where is my cat?"])),
    "scitldr": (
        {"source": ["One.", "Two."], "target": ["First", "Second"]},
        ("####### DOCUMENT #######\n\nOne. Two.\n\n####### SUMMARY #######", "First", ["First", "Second"]),
    ),
    "restore": ({"text": "Where is my cat?"}, ("where is my czt", "Where is my cat?", ["Where is my cat?"])),
    "pairs": ({"source": "s", "target": "t", "references": ["t", "u"]}, ("s", "t", ["t", "u"])),
}


TEXT_FUNCTIONS = ("join", "shortest", "last_word", "without_last_word", "corrupt")


@pytest.fixture
def clean_texts(tmp_path, monkeypatch):
    """A working folder with the lexicon that prepare_restoration.py writes."""
    folder = tmp_path / "outputs" / "clean"
    folder.mkdir(parents=True)
    Lexicon.count(["Where is my cat?"] * 5).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ROWS)
def test_every_task_renders_its_rows(name, clean_texts):
    row, (source, target, references) = ROWS[name]
    task = Task.load(name)
    built = task.build(Dataset.from_list([row]), "<mask>")
    # A task whose rows are drawn anew keeps what they are drawn from.
    kept = {"row": row} if task.redraw else {}
    assert set(built.column_names) == {"source", "target", "references", *kept}
    assert built[0] == {"source": source, "target": target, "references": references, **kept}


def test_every_task_file_is_among_them():
    assert set(ROWS) == {path.stem for path in configuration_path("tasks", "pairs.yaml").parent.glob("*.yaml")}


def test_a_lexicon_mends_a_share_of_the_texts(clean_texts):
    text = "where is my cat"

    def typed(**options) -> list[str]:
        function = DERIVED_COLUMNS["corrupt"]
        rates = {"with_typos": 1.0, "most_typos": 1.0, "confusion_rate": 0.0, "split_rate": 0.0, "space_rate": 0.0}
        return [function([text], mask_token="<mask>", seed=seed, **rates, **options) for seed in range(200)]

    unmended, mended = typed(), typed(lexicon="outputs/clean")
    assert mended == [Lexicon.from_pretrained("outputs/clean").mended(corrupted) for corrupted in unmended]
    assert mended.count(text) > unmended.count(text) + 50
    half = typed(lexicon="outputs/clean", mended=0.5)
    assert all(drawn in pair for drawn, *pair in zip(half, unmended, mended, strict=True))
    assert typed(lexicon="outputs/clean", mended=0.0) == unmended != half != mended
    with pytest.raises(ValueError, match=r"lexicon=outputs holds no lexicon\.txt"):
        typed(lexicon="outputs")


def test_masked_spans_are_short_apart_and_decided_by_seed_and_text():
    text = " ".join(f"w{i}" for i in range(100))
    function = DERIVED_COLUMNS["mask_spans"]
    shown = function([text], mask_token="<mask>", rate=0.2, max_span=3, seed=1)
    words, at = shown.split(" "), 0
    hidden = []
    for index, word in enumerate(words):
        if word != "<mask>":
            assert word == f"w{at}"
            at += 1
            continue
        following = int(words[index + 1][1:]) if index + 1 < len(words) else 100
        hidden.append(following - at)
        at = following
    assert sum(hidden) == 20
    assert all(1 <= span <= 3 for span in hidden)
    assert shown == function([text], mask_token="<mask>", rate=0.2, max_span=3, seed=1)
    assert shown != function([text], mask_token="<mask>", rate=0.2, max_span=3, seed=2)
    # More than can be kept apart is not an endless search.
    assert "<mask>" in function(["a b c d"], mask_token="<mask>", rate=0.9)
    with pytest.raises(ValueError, match="none of the 1 rows"):
        Task.load("narrativeqa_infilling").build(Dataset.from_list([{"summary": "One"}]), "<mask>")


def test_messy_rows_are_dropped_and_counted_or_raise(caplog):
    task = Task.load("rocstories_middle_sentence")
    data = Dataset.from_list([{"text": "A a. B b. C c. D d. E e."}, {"text": "Only one sentence."}, {"text": ""}])
    with caplog.at_level("WARNING"):
        assert len(task.build(data, "<mask>")) == 1
    assert "2 of 3 rows" in caplog.text
    papers = Dataset.from_list([{"source": ["One."], "target": ["First"]}, {"source": [], "target": ["Second"]}])
    assert Task.load("scitldr").build(papers)["target"] == ["First"]
    with pytest.raises(ValueError, match=r"row 1.*target of a row is empty.*bad_rows: drop"):
        Task.load("e2e_nlg").build(Dataset.from_list([{"meaning_representation": "x", "human_reference": " "}]))


def test_a_text_of_one_word_has_nothing_before_its_last():
    with pytest.raises(ValueError, match="row 1: the text has one word"):
        Task.load("rocstories_last_word").build(Dataset.from_list([{"text": " Word. "}]), "<mask>")


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match=r"'human_reference'.*meaning_representation"):
        Task.load("e2e_nlg").build(Dataset.from_list([{"meaning_representation": "x"}]))
    with pytest.raises(ValueError, match=r"answers\.text"):
        Task.load("squad").build(Dataset.from_list([{"context": "x", "question": "y"}]))


def test_references_are_a_column_of_texts_or_one_text():
    task = Task("own", "{q}", "{a}", references="all")
    data = Dataset.from_list([{"q": "1", "a": "one", "all": "uno"}, {"q": "2", "a": "two", "all": None}])
    built = task.build(data)
    assert list(built["references"]) == [["uno"], ["two"]]
    assert group_references(built)["references"][0] == ["uno"]
    with pytest.raises(ValueError, match=r"task own: column 'all' is not in the data; it has \['a', 'q'\]"):
        task.build(data.remove_columns("all"))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["x", None, " "], ["x"]),
        ([3, 4], ["3", "4"]),
        (0, ["0"]),
        ([None, ""], ["a"]),
        ([{"text": "x"}], "references must be texts, and column 'r' holds a dict"),
    ],
)
def test_references_are_texts_and_what_is_missing_among_them_is_left_out(given, read):
    task = Task("own", "{q}", "{a}", references="r")
    row = {"q": "1", "a": "a", "r": given}
    if isinstance(read, str):
        with pytest.raises(ValueError, match=read):
            task.render(row)
    else:
        assert task.render(row)["references"] == read


@pytest.mark.parametrize(
    ("function", "values", "text"),
    [
        ("join", ["a", 2], "a 2"),
        ("shortest", [10, 2], "2"),
        ("last_word", 3, "3"),
        ("last_word", " ", "column 'x' is blank"),
        *((name, {"y": 1}, f"'{name}' of 't' needs texts, and column 'x' holds a dict") for name in TEXT_FUNCTIONS),
    ],
)
def test_functions_of_texts_take_numbers_as_texts_and_refuse_the_rest(function, values, text):
    task = Task("own", "{q}", "{t}", derive={"t": {"function": function, "column": "x"}})
    if len(text) < 4:
        assert task.render({"q": "1", "x": values})["target"] == text
    else:
        with pytest.raises(ValueError, match=text):
            task.render({"q": "1", "x": values})


def test_rows_without_answers_have_sources():
    source = "####### DOCUMENT #######\n\nC"
    assert Task.load("ag_news").without_answers().render({"text": "C"})["source"] == source
    masked = Task.load("rocstories_last_word").without_answers()
    assert masked.render({"text": "One two. Three four."}, "<mask>")["source"] == "One two. Three <mask>"
    with pytest.raises(ValueError, match="row 2: task sst2: column 'sentence' is empty"):
        Task.load("sst2").without_answers().build(Dataset.from_list([{"sentence": "a"}, {"sentence": None}]))


def test_no_row_left_is_an_error():
    with pytest.raises(ValueError, match="none of the 1 rows"):
        Task.load("rocstories_middle_sentence").build(Dataset.from_list([{"text": "One."}]), "<mask>")


@pytest.mark.parametrize("name", ["rocstories_last_word", "rocstories_middle_sentence", "narrativeqa_infilling"])
def test_a_task_that_masks_text_needs_a_mask_token(name):
    row, _ = ROWS[name]
    with pytest.raises(ValueError, match=f"task {name} puts a mask token in the place of words, and the tokenizer has"):
        Task.load(name).build(Dataset.from_list([row]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: d\nsource: s\ntarget: t\nsauce: x\n", "sauce"),
        ("dataset: d\nsource: s\ntarget: t\nmetric: vibes\n", "vibes"),
        ("dataset: d\nsource: s\ntarget: t\nbad_rows: ignore\n", "ignore"),
        ("dataset: d\nsource: s\ntarget: t\nderive: {x: {function: magic, column: c}}\n", "magic"),
        ("dataset: d\nsource: s\ntarget: t\ntruncation_side: up\n", "up"),
        ("dataset: d\nsource: s\n", "target"),
        ('source: "s\ntarget: t\n', "is no YAML"),
        ("source: s\ntarget: t\nderive: [a]\n", "derive=.* must hold a name"),
        ("source: s\ntarget: t\nderive: {x: first}\n", "x has function 'first'; known are"),
        ("source: s\ntarget: t\nderive: {x: {function: first}}\n", "x: first needs a `column`"),
        ("source: s\ntarget: t\nderive: {x: {function: first, column: a, columns: [b]}}\n", "needs a `column`, or"),
        ("source: s\ntarget: t\nderive: {x: {function: label, column: c}}\n", "label needs the options .'names'"),
        ("source: s\ntarget: t\nderive: {x: {function: last_word, column: c, foo: 2}}\n", "no options .'foo'"),
        ("source: '{question} {}'\ntarget: t\n", "field without the name of a column"),
        ("source: '{question'\ntarget: t\n", "must be a format string"),
        ("source: 7\ntarget: t\n", "must be a format string"),
        ("source: s\ntarget: t\nmax_source_length: long\n", "max_source_length='long' must be a number of tokens"),
        ("source: s\ntarget: t\nmax_target_length: 0\n", "max_target_length=0 must be a number of tokens"),
    ],
)
def test_bad_task_files_are_refused(tmp_path, text, message):
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Task.load(str(path))


def test_unknown_task_lists_what_there_is():
    with pytest.raises(FileNotFoundError, match=r"e2e_nlg\.yaml"):
        Task.load("nonsense")


def test_references_of_equal_sources_are_joined_once():
    rows = [("a", "x", ["x"]), ("b", "y", ["y"]), ("a", "z", ["z"]), ("a", "x", ["x"])]
    data = Dataset.from_list([{"source": s, "target": t, "references": r} for s, t, r in rows])
    assert group_references(data).to_list() == [
        {"source": "a", "references": ["x", "z"], "target": "x"},
        {"source": "b", "references": ["y"], "target": "y"},
    ]


def test_local_folders_load_and_empty_ones_say_so(tmp_path):
    Dataset.from_list([ROWS["e2e_nlg"][0]] * 3).to_parquet(tmp_path / "train.parquet")
    assert len(load_splits(str(tmp_path), Task.load("e2e_nlg"))["train"]) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty folder"):
        load_splits(str(tmp_path / "empty"), Task.load("e2e_nlg"))


def test_last_word_and_label_functions():
    assert DERIVED_COLUMNS["last_word"](["a b c."]) == "c."
    assert DERIVED_COLUMNS["label"]([1], names=["no", "yes"]) == "1 yes"


def test_lengths_are_replaced_only_where_given():
    task = Task.load("squad")
    shorter = task.with_lengths(max_source_length=10)
    assert (shorter.max_source_length, shorter.max_target_length) == (10, task.max_target_length)
    assert task.with_lengths(None, 5).max_target_length == 5
    assert task.with_lengths() == task
