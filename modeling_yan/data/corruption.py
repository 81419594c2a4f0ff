"""
Clean text -> the same text as it is typed in a hurry or written down by speech recognition: without capitals and marks,
with typing errors and misplaced spaces. What models that restore text are trained on.

    corrupt("We left at 9:30, didn't we?", Corruption(), random.Random(0))
"""

import random
import re
from dataclasses import dataclass, fields

# Marks that are dropped; hyphens stay, which are part of words.
MARKS = ".,?!:;\"'()"
VOWELS = "aeiou"
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Words that people write for each other.
CONFUSIONS = [
    ("their", "there", "they're"),
    ("your", "you're"),
    ("its", "it's"),
    ("to", "too"),
    ("then", "than"),
    ("lose", "loose"),
    ("whose", "who's"),
    ("were", "where", "we're"),
    ("quite", "quiet"),
    ("affect", "effect"),
    ("advice", "advise"),
    ("accept", "except"),
    ("weather", "whether"),
    ("passed", "past"),
    ("of", "off"),
    ("could have", "could of"),
]
MISSPELLINGS = {
    "a lot": "alot",
    "across": "accross",
    "argument": "arguement",
    "beginning": "begining",
    "believe": "beleive",
    "business": "buisness",
    "calendar": "calender",
    "definitely": "definately",
    "different": "diffrent",
    "embarrassed": "embarassed",
    "environment": "enviroment",
    "especially": "especialy",
    "existence": "existance",
    "foreign": "foriegn",
    "friend": "freind",
    "government": "goverment",
    "immediately": "immediatly",
    "independent": "independant",
    "interesting": "intresting",
    "knowledge": "knowlege",
    "necessary": "neccessary",
    "neighbor": "nieghbor",
    "occasion": "ocassion",
    "occurred": "occured",
    "piece": "peice",
    "probably": "probly",
    "really": "realy",
    "receive": "recieve",
    "remember": "rember",
    "restaurant": "restaraunt",
    "separate": "seperate",
    "similar": "similiar",
    "surprise": "suprise",
    "tomorrow": "tommorow",
    "truly": "truely",
    "until": "untill",
    "weird": "wierd",
    "which": "wich",
    "writing": "writting",
}


def _neighbours() -> dict[str, str]:
    """Letter -> letters beside it, above and below it on a keyboard."""
    found: dict[str, str] = {}
    for row, keys in enumerate(KEYBOARD):
        for place, key in enumerate(keys):
            beside = keys[max(place - 1, 0) : place] + keys[place + 1 : place + 2]
            above = KEYBOARD[row - 1][place : place + 2] if row else ""
            below = KEYBOARD[row + 1][max(place - 1, 0) : place + 1] if row + 1 < len(KEYBOARD) else ""
            found[key] = beside + above + below
    return found


NEIGHBOURS = _neighbours()
WRITTEN_FOR = {word: [w for w in words if w != word] for words in CONFUSIONS for word in words} | {
    word: [wrong] for word, wrong in MISSPELLINGS.items()
}


@dataclass(frozen=True)
class Corruption:
    """
    How often each kind of error is made. Shares are of texts, rates of words or marks.

    Args:
        untouched: share of texts that stay as they are.
        lower_case: share without any capital; in others `capital_rate` applies.
        capital_rate: rate at which a word loses its capitals.
        without_marks: share without any of `MARKS` but apostrophes; in others `mark_rate` applies.
        mark_rate: rate at which a mark is dropped. That of apostrophes in all texts.
        with_typos: share with typing errors.
        most_typos: rate of words with a typing error in such a text is drawn between 0 and this.
        confusion_rate: rate at which a word that has a common misspelling or a double is written so, in such texts.
        split_rate, join_rate, space_rate: rate at which a word is split in two, joined with the next, and followed by a
            second space.

    Raises:
        ValueError: for a share or a rate outside of 0 to 1.
    """

    untouched: float = 0.04
    lower_case: float = 0.7
    capital_rate: float = 0.1
    without_marks: float = 0.6
    mark_rate: float = 0.15
    with_typos: float = 0.7
    most_typos: float = 0.15
    confusion_rate: float = 0.06
    split_rate: float = 0.004
    join_rate: float = 0.008
    space_rate: float = 0.005

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"{field.name}={value} is a share or a rate; it must lie between 0 and 1")


def is_protected(word: str) -> bool:
    """Whether a word is a number, a link, an address or code, which no error is made in."""
    return bool(re.search(r"[\d@/\\_<>{}=#$%&*+|~^]|www\.|\w\.\w", word))


def corrupt(text: str, corruption: Corruption, draw: random.Random) -> str:
    """
    A text with errors. Line breaks and runs of white space become one space each, at the ends nothing.

    Args:
        text: clean.
        corruption: rates of the errors.
        draw: decides them.
    """
    words = text.split()
    if draw.random() < corruption.untouched:
        return " ".join(words)
    lower = draw.random() < corruption.lower_case
    mark_rate = 1.0 if draw.random() < corruption.without_marks else corruption.mark_rate
    typo_rate = confusion_rate = 0.0
    if draw.random() < corruption.with_typos:
        typo_rate, confusion_rate = draw.random() * corruption.most_typos, corruption.confusion_rate
    written = []
    for word in words:
        if is_protected(word.strip(MARKS)):
            # What ends a sentence goes from behind a number, too.
            written.append(_drop_marks(word, mark_rate, corruption.mark_rate, inside=False, draw=draw))
            continue
        word = _drop_marks(word, mark_rate, corruption.mark_rate, inside=True, draw=draw)
        if draw.random() < confusion_rate:
            word = _confuse(word, draw)
        if lower or draw.random() < corruption.capital_rate:
            word = word.lower()
        if draw.random() < typo_rate:
            word = mistype(word, draw)
        written.append(word)
    return _space([word for word in written if word], corruption, draw)


def _drop_marks(word: str, rate: float, apostrophe_rate: float, *, inside: bool, draw: random.Random) -> str:
    """The word without some of its marks; those of a protected one are dropped at its ends alone."""
    core = word.strip(MARKS)
    start = word.find(core) if core else len(word)
    kept = ""
    for place, letter in enumerate(word):
        at_end = not start <= place < start + len(core)
        own_rate = apostrophe_rate if letter == "'" and not at_end else rate
        if letter in MARKS and (inside or at_end) and draw.random() < own_rate:
            continue
        kept += letter
    return kept


def _confuse(word: str, draw: random.Random) -> str:
    """The word as it is often misspelled, in its capitals; itself where it is not."""
    core = word.strip(MARKS)
    wrong = WRITTEN_FOR.get(core.lower())
    if not wrong:
        return word
    chosen = draw.choice(wrong)
    return word.replace(core, chosen.capitalize() if core[:1].isupper() else chosen, 1)


def mistype(word: str, draw: random.Random) -> str:
    """
    The word with one typing error: a letter that is dropped, doubled, swapped with the next, replaced by a neighbour on
    the keyboard or followed by one, a vowel for another, a doubled letter written once. Words of less than three
    letters stay.
    """
    letters = [place for place, letter in enumerate(word) if letter.isascii() and letter.isalpha()]
    if len(letters) < 3:
        return word
    kind = draw.choices(
        ("drop", "double", "swap", "neighbour", "insert", "vowel", "single"), weights=(4, 2, 4, 4, 1, 3, 2)
    )[0]
    place = draw.choice(letters)
    letter = word[place]
    if kind == "single":
        doubled = [p for p in letters if word[p : p + 1].lower() == word[p + 1 : p + 2].lower()]
        return word if not doubled else _replace(word, draw.choice(doubled), "")
    if kind == "vowel":
        vowels = [p for p in letters if word[p].lower() in VOWELS]
        return word if not vowels else _replace(word, draw.choice(vowels), draw.choice(VOWELS))
    if kind == "swap":
        return _swap(word, place)
    near = draw.choice(NEIGHBOURS[letter.lower()])
    return _replace(word, place, {"drop": "", "double": 2 * letter, "neighbour": near, "insert": letter + near}[kind])


def _replace(word: str, place: int, new: str) -> str:
    if word[place].isupper():
        new = new.capitalize()
    return word[:place] + new + word[place + 1 :]


def _swap(word: str, place: int) -> str:
    """The word with a letter and its next exchanged; capitals stay where they are."""
    if place + 1 >= len(word) or not word[place + 1].isalpha():
        return word
    first, second = word[place], word[place + 1]
    pair = second + first
    if first.isupper():
        pair = pair[0].upper() + pair[1].lower()
    return word[:place] + pair + word[place + 2 :]


def _space(words: list[str], corruption: Corruption, draw: random.Random) -> str:
    """The words with spaces between them, some missing, doubled or inside of a word."""
    text = ""
    for place, word in enumerate(words):
        if draw.random() < corruption.split_rate and len(word) > 3 and word.isalpha():
            cut = draw.randint(1, len(word) - 1)
            word = f"{word[:cut]} {word[cut:]}"
        text += word
        if place + 1 == len(words):
            break
        joined = draw.random() < corruption.join_rate and word.isalpha() and words[place + 1].isalpha()
        text += "" if joined else "  " if draw.random() < corruption.space_rate else " "
    return text
