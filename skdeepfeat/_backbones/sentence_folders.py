"""Folders of sentence-transformers: what they compute of the states of an encoder."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from .._exceptions import TextWarning, warn_user
from .._texts.specs import POOLINGS

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
CONFIG = "config.json"
# Modules that leave the pooled states as they are, or only scale them.
PLAIN = {"Transformer", "Pooling", "Normalize", "Dropout"}
# Switches of older folders → names of newer ones, which are ours.
SWITCH = "pooling_mode_"
SWITCHES = {"mean_tokens": "mean", "max_tokens": "max", "cls_token": "cls"}


@lru_cache(maxsize=256)  # once for each pooling
def warn_about_modules(folder: Path, name: str, pooling: str) -> None:
    """Warn if a folder of sentence-transformers computes more than these features."""
    theirs, others = pooling_and_others(folder)
    same = {"mean+max": "meanmax", "max+mean": "meanmax"}.get(theirs, theirs)
    steps = []
    if theirs and same != pooling:
        remedy = f" (set pooling={same!r} for the same)" if same in POOLINGS else ""
        steps.append(f"pools them with {theirs!r}{remedy}")
    if others:
        steps.append(f"computes {', '.join(others)} of them")
    if prompt := _default_prompt(folder):
        steps.append(f"puts {prompt!r} before each text (add it for the same)")
    if steps:
        warn_user(
            f"Backbone {name!r} is a folder of sentence-transformers. These features "
            f"are the states of its encoder, pooled with {pooling!r}; "
            f"sentence-transformers {' and '.join(steps)}.",
            TextWarning,
        )


def where_the_encoder_is(folder: Path) -> str:
    """A sentence about the encoder of a folder that has no configuration itself."""
    try:
        modules = _read(folder / MODULES)
        paths = [(str(m["type"]).rpartition(".")[2], m["path"]) for m in modules]
    except (OSError, ValueError, KeyError, TypeError):
        return "Write the folder with save_pretrained of transformers."
    for kind, path in paths:
        if kind == "Transformer" and (folder / path / CONFIG).is_file():
            return (
                "It is a folder of sentence-transformers, with its encoder inside: "
                f"pass {str(folder / path)!r}."
            )
    kinds = ", ".join(kind for kind, _ in paths)
    return (
        f"It is a folder of sentence-transformers that consists of {kinds}. Pass a "
        "folder with a transformer, or a file of word vectors."
    )


def _default_prompt(folder: Path) -> str:
    """What sentence-transformers puts before each text, or nothing."""
    try:
        found = _read(folder / PROMPTS)
        return found["prompts"][found["default_prompt_name"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def pooling_and_others(folder: Path) -> tuple[str, list[str]]:
    """How a folder of sentence-transformers pools, and its modules that go further."""
    try:
        modules = _read(folder / MODULES)
        paths = {str(m["type"]).rpartition(".")[2]: m["path"] for m in modules}
        others = [kind for kind in paths if kind not in PLAIN]
        if "Pooling" not in paths:
            return "", others
        return _pooling_in(_read(folder / paths["Pooling"] / CONFIG)), others
    except (OSError, ValueError, KeyError, TypeError):
        return "", []  # none, or unreadable; only a warning needs them


def _pooling_in(config: dict[str, Any]) -> str:
    """The poolings in a configuration, joined by signs of addition."""
    modes = config.get("pooling_mode")
    if modes is None:
        on = [
            n for n, value in config.items() if n.startswith(SWITCH) and value is True
        ]
        modes = [SWITCHES.get(n.removeprefix(SWITCH), n) for n in on]
    return modes if isinstance(modes, str) else "+".join(modes)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
