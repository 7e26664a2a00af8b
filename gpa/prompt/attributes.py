"""The table of attributes: what a wording may ask of a result beyond its task, and how its rows are made.

An `Attribute` is one object: its phrases, which clips can serve it, and what becomes of such a clip. Training
(`gpa.data.instructions`) and evaluation (`gpa.evals.instructed`) read this table (docs/add-a-task.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

from gpa.errors import PromptError
from gpa.prompt.tasks import ASR, TASKS, TTS, VC
from gpa.text.edit_distance import edits
from gpa.text.pronunciations import Verbatim

FIRST_WORDS = 3
STRAY = 0.5  # share of edits from which a draft is in no form that is known


@dataclass(frozen=True)
class Attribute:
    """One attribute, whole.

    A phrase follows a wording of one of the `tasks`: "transcribe this" and "in capitals"; `held_out` ones are
    for evaluation alone, where `measure` names what is looked at (`MEASURES` of `gpa.evals.instructed`). A
    row that has it comes of an ordinary clip, by what is given of these:

    `written` makes the text that is written of the clip's. `rate` is where the clip's speech rate must rank
    among its speaker's, from 0 to 1. `pause` are the least and the most seconds of silence, the corpus' own,
    put in front. `unaltered` speech is converted from the clip itself, not from an augmented copy.
    PromptError for an attribute that contradicts itself.
    """

    name: str
    tasks: tuple[str, ...]
    phrases: tuple[str, ...]
    held_out: tuple[str, ...]
    measure: str
    written: Callable[[str], str] | None = None
    rate: tuple[float, float] | None = None
    pause: tuple[float, float] | None = None
    unaltered: bool = False

    def __post_init__(self) -> None:
        if strange := sorted(set(self.tasks) - set(TASKS)) or not (self.tasks and self.phrases):
            raise PromptError(
                f"attribute {self.name}: tasks of the table and phrases are needed, not {strange}"
            )
        if self.written and not all(TASKS[task].writes for task in self.tasks):
            raise PromptError(f"attribute {self.name}: `written` is for tasks that write")
        if (self.rate or self.pause) and any(TASKS[task].writes for task in self.tasks):
            raise PromptError(f"attribute {self.name}: `rate` and `pause` are for tasks that speak")

    def instruction(self, wording: str, phrase: str) -> str:
        """A task's wording with a phrase of this attribute."""
        return f"{wording} {phrase}"


def capitals(text: str) -> str:
    """A text in upper case."""
    return Verbatim(text.upper())


def spelled(text: str) -> str:
    """A text letter by letter, a comma after each word."""
    return Verbatim(", ".join(" ".join(word) for word in text.split()))


def first_words(text: str) -> str:
    """The beginning of a text."""
    return " ".join(text.split()[:FIRST_WORDS])


ATTRIBUTES: dict[str, Attribute] = {
    attribute.name: attribute
    for attribute in (
        Attribute(
            name="capitals",
            tasks=(ASR.name,),
            phrases=("in capitals", "in capital letters", "in upper case", "all in capitals"),
            held_out=("using capitals", "in big capital letters"),
            measure="capital letters",
            written=capitals,
        ),
        Attribute(
            name="spelled",
            tasks=(ASR.name,),
            phrases=("letter by letter", "spelled out", "and spell it out", "spell every word"),
            held_out=("and spell it letter by letter", "with every word spelled out"),
            measure="single letters",
            written=spelled,
        ),
        Attribute(
            name="first words",
            tasks=(ASR.name,),
            phrases=("the first three words only", "only three words", "just the first three words"),
            held_out=("only the first three words", "but only three words"),
            measure="words",
            written=first_words,
        ),
        Attribute(
            name="fast",
            tasks=(TTS.name,),
            phrases=("fast", "quickly", "speak fast", "at a fast pace"),
            held_out=("speaking quickly", "at a quick pace"),
            measure="speech rate",
            rate=(0.75, 1.0),
        ),
        Attribute(
            name="slow",
            tasks=(TTS.name,),
            phrases=("slowly", "speak slowly", "at a slow pace", "take your time"),
            held_out=("speaking slowly", "slowly please"),
            measure="speech rate",
            rate=(0.0, 0.25),
        ),
        Attribute(
            name="pause",
            tasks=(TTS.name, VC.name),
            phrases=("after a pause", "with a pause first", "pause first", "wait before you speak"),
            held_out=("after a short pause", "but pause first"),
            measure="leading silence",
            pause=(0.6, 1.2),
        ),
        Attribute(
            name="pitch",
            tasks=(VC.name,),
            phrases=("and keep the pitch", "keep the pitch", "with the same melody", "with the same pitch"),
            held_out=("but keep the pitch", "and keep the melody"),
            measure="pitch correlation",
            unaltered=True,
        ),
    )
}


def add(attribute: Attribute) -> Attribute:
    """Put an attribute into the table, for this process; PromptError if its name is taken."""
    if attribute.name in ATTRIBUTES:
        raise PromptError(f"attribute {attribute.name} stands in the table already")
    ATTRIBUTES[attribute.name] = attribute
    return attribute


def written_as(draft: str, words: str) -> str | None:
    """Words in the form of a draft: as they are, or as an attribute writes them, whichever is nearest.

    None where no form comes near: more than `STRAY` of its characters would have to be edited.
    """
    forms = [words, *(str(each.written(words)) for each in ATTRIBUTES.values() if each.written)]
    share = {form: edits(draft, form) / max(len(draft), len(form), 1) for form in forms}
    nearest = min(share, key=lambda form: share[form])
    return nearest if share[nearest] <= STRAY else None
