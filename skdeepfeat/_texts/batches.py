"""Texts → tokens → batches of fixed shapes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .._exceptions import TextError
from .specs import TokenSpec, WordSpec
from .windows import Texts, TextWindow, name_of


class NoTokens(ValueError):
    """A text has no tokens that a network takes; says why."""


class Tokens(NamedTuple):
    """The tokens of a text, and whether they are all of them or were cut."""

    tokens: list
    whole: bool


@dataclass
class TextBatch:
    """One computed shape's worth of texts.

    Parameters
    ----------
    rows : list of int
        Positions in X.
    input : ndarray of shape (batch_size, length), int32, or list
        Tokens of the texts.
    errors : list of TextError
        Of the texts that have no tokens.
    in_range : list of bool
        Of each of `rows`, whether the whole text is in it.
    sources : list of str
        The name of each of `rows` in messages.
    shares : dict of str to float
        How the time spent on it divides.
    """

    rows: list[int]
    input: Any
    errors: list[TextError]
    in_range: list[bool]
    sources: list[str]
    shares: dict[str, float] = field(default_factory=lambda: {"tokenizing": 1.0})


@dataclass(frozen=True)
class TextReading:
    """How texts are read, and become the input of a network.

    Parameters
    ----------
    make_tokenizer : callable
        Returns the function that makes the tokens of a text; called when needed.
    """

    make_tokenizer: Callable[[], Callable[[str], Tokens]]
    spreads = False  # to send texts costs more than word vectors of them

    def in_worker(self, n_threads: int) -> "TextReading":
        """The same: texts are read by one thread."""
        return self

    @property
    def about(self) -> dict[str, Any]:
        """Nothing: a text is what it is."""
        return {}

    settings = about

    def windows(self, texts: Texts, recall) -> Iterator[TextWindow]:
        """All texts in order, in windows, hashed."""
        return texts.windows()

    def batches(
        self,
        window: TextWindow,
        rows: Iterable[int],
        spec: TokenSpec | WordSpec,
        batch_size: int,
        meanwhile: bool,
    ) -> Iterator[TextBatch]:
        """Batches of texts of about the same length, so that little is padded."""
        tokenize = self.make_tokenizer()
        waiting: dict[int, dict[int, Tokens]] = defaultdict(dict)
        errors: list[TextError] = []
        for row in rows:
            try:
                found = tokenize(window.texts[row])
            except NoTokens as error:
                failed = TextError(row, name_of(window.texts[row]), str(error))
                failed.__cause__ = error
                errors.append(failed)
                continue
            length = spec.padded_length(len(found.tokens))
            waiting[length][row] = found
            if len(waiting[length]) == spec.number_at_once(length, batch_size):
                yield _collect(window, waiting.pop(length), spec, length, batch_size)
        for length, some in sorted(waiting.items()):
            yield _collect(window, some, spec, length, batch_size)
        if errors:
            length = spec.padded_length(0)
            yield replace(_collect(window, {}, spec, length, 1), errors=errors)


def _collect(window, some: dict[int, Tokens], spec, length, batch_size) -> TextBatch:
    """One batch of these texts."""
    tokens = [found.tokens for found in some.values()]
    number = spec.number_at_once(length, batch_size)
    return TextBatch(
        rows=list(some),
        input=spec.collate(tokens, length, number),
        errors=[],
        in_range=[found.whole for found in some.values()],
        sources=[name_of(window.texts[row]) for row in some],
    )
