"""Texts → tokens → batches of fixed shapes."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from .._exceptions import TextError
from .specs import TokenSpec, WordSpec
from .windows import Texts, TextWindow, name_of

READ_AT_ONCE = 32  # texts that a thread makes tokens of
AHEAD = 4  # times as many, before they are needed


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
        """Nothing: no setting changes how a text is read."""
        return {}

    settings = about  # nor does one of the process

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
        waiting: dict[int, dict[int, Tokens]] = defaultdict(dict)
        errors: list[TextError] = []
        for row, found in _tokenized(self.make_tokenizer(), window, rows):
            if isinstance(found, TextError):
                errors.append(found)
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


def _tokenized(tokenize, window: TextWindow, rows: Iterable[int]) -> Iterator[tuple]:
    """Rows in order, each with its tokens or error; the next ones are made meanwhile.

    One thread makes them, because tokenizers of users need not be safe in several.
    """

    def read(some: list[int]) -> list[tuple]:
        return [(row, _tokens_of(tokenize, row, window.texts[row])) for row in some]

    rows = iter(rows)
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1, "skdeepfeat-tokenize") as pool:
        try:
            while some := list(islice(rows, READ_AT_ONCE)):
                waiting.append(pool.submit(read, some))
                if len(waiting) > AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _tokens_of(tokenize, row: int, text: str) -> Tokens | TextError:
    """The tokens of a text, or why it has none."""
    try:
        return tokenize(text)
    except NoTokens as error:
        failed = TextError(row, name_of(text), str(error))
        failed.__cause__ = error
        return failed


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
