"""The pages of the site: width of code, output of sessions, and pictures."""

import contextlib
import doctest
import io
import re
import textwrap
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from test_docs import _make_photos

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = {"_build", "auto_examples", "generated"}
PAGES = sorted(
    [ROOT / "README.md"]
    + [p for p in DOCS.rglob("*.md") if not BUILT & set(p.relative_to(DOCS).parts)]
)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PICTURES = sorted((DOCS / "pictures").glob("*.svg"))
SESSION_PAGES = [page for page in PAGES if "```pycon\n" in page.read_text()]

COLUMNS = 72
# A command that other files hold word for word.
LONG = {"pip install -q --disable-pip-version-check -e '.[test]' && python -m pytest"}
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
KILOBYTE = 1000


def code_lines(page):
    """The lines of all code blocks of a page, directives left out."""
    blocks = FENCE.findall(page.read_text())
    shown = [block for _, kind, block in blocks if not kind.startswith("{")]
    return "".join(shown).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_fit_their_column(page):
    too_long = [line for line in code_lines(page) if len(line) > COLUMNS]
    assert set(too_long) <= LONG


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_their_column(example):
    lines = example.read_text().splitlines()
    assert [line for line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_one_figure_and_fewer_than_100_lines(example):
    source = example.read_text()
    assert source.count(".savefig(") == 1
    assert source.count("\n") < 100


@pytest.mark.parametrize("page", SESSION_PAGES, ids=lambda page: page.name)
def test_sessions_print_what_the_page_shows(page, tmp_path, monkeypatch):
    """The ``pycon`` blocks of a page run in one namespace, errors and warnings too."""
    monkeypatch.chdir(tmp_path)
    _make_photos(tmp_path / "photos")
    blocks = re.findall(r"```pycon\n(.*?)```", page.read_text(), re.DOTALL)
    examples = doctest.DocTestParser().get_examples("\n".join(blocks))
    namespace = {"__name__": "__main__"}
    shown = [_as_session(one.source, one.want) for one in examples]
    printed = [
        _as_session(one.source, _output_of(one.source, namespace)) for one in examples
    ]
    assert "".join(printed).split() == "".join(shown).split(), "".join(printed)


def _output_of(source, namespace):
    """What an interpreter prints for a statement: its value, warnings, an error."""
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        warnings.catch_warnings(record=True, action="always") as caught,
    ):
        try:
            exec(compile(source, "<session>", "single"), namespace)
        except Exception as error:
            print("Traceback (most recent call last):\n  ...")
            print(f"{type(error).__name__}: {error}")
    said = [f"{one.category.__name__}: {one.message}\n" for one in caught]
    return "".join(said) + out.getvalue()


def _as_session(source, output):
    """A statement and its output as a page shows them, in lines that fit."""
    first, *others = source.splitlines()
    lines = [f">>> {first}", *(f"... {line}" for line in others)]
    for line in output.splitlines():
        lines += textwrap.wrap(line, COLUMNS) or [""]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_pictures_are_small_titled_and_take_the_colour_of_the_page(picture):
    root = ElementTree.parse(picture).getroot()
    assert root.get("fill") == "currentColor"
    assert root.get("role") == "img"
    assert root.find("{http://www.w3.org/2000/svg}title").text
    assert picture.stat().st_size < 40 * KILOBYTE


def test_every_picture_is_shown_and_every_shown_picture_exists():
    texts = [page.read_text() for page in PAGES]
    shown = {name for text in texts for name in re.findall(r"pictures/(.+)\.svg", text)}
    assert shown == {picture.stem for picture in PICTURES}
