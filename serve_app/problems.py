"""What validation found wrong, in one line for people: which key, what was expected, what came."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
"""Pydantic's kinds of range error: the name of the bound in the error's context, and our words for it."""

_SECRETS = frozenset({"keys", "librdkafka", "sasl_password", "ssl_key_password", "service_key"})
"""Keys whose values, or parts of them, are not to be repeated."""

_STARTS_WITH_KEY = re.compile(r"[a-z_.]+: ")


def describe(model: type[BaseModel], location: tuple[str | int, ...], problem: Mapping[str, Any]) -> str:
    """Say in one line what one of pydantic's errors means; `location` is the key's place in `model`."""
    key, kind, message = written(location), problem["type"], problem["msg"]
    if kind in {"extra_forbidden", "invalid_key"}:
        return unknown_key(model, location)
    if kind == "missing":
        return f"{key}: expected a value, got none"
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        # A rule across keys of ours starts its message with the key, relative to the group it was checked on.
        if isinstance(problem["input"], Mapping) and (_STARTS_WITH_KEY.match(text) or not key):
            return f"{key}.{text}" if key else text
        return f"{key}: {text}"
    if kind == "string_pattern_mismatch":
        message = f"expected text that matches {problem['ctx']['pattern']}"
    elif kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        message = f"expected {words} {problem['ctx'][name]}"
    elif kind in {"model_type", "model_attributes_type", "dict_type"}:
        message = "expected a group of keys"
    expected = re.sub(r"^[A-Z][a-z]+ should (be |have )?", "expected ", message)
    got = repr(problem["input"]) if _SECRETS.isdisjoint(location) else "something else"
    return f"{key}: {expected}, got {got}"


def unknown_key(model: type[BaseModel], location: tuple[str | int, ...]) -> str:
    """Say that a key is unknown, and which one it was probably meant to be: of its own group, else of any other."""
    return f"{written(location)}: unknown key{_suggest(model, location)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message: the known word that is most like this one, if any is."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def written(location: tuple[str | int, ...]) -> str:
    """A place in a document as people write it: `applications[0].args`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def group_of(annotation: object) -> type[BaseModel] | None:
    """The model in a field's type: the type itself, one of a union's, or a list's items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list):
        groups = filter(None, map(group_of, typing.get_args(annotation)))
        return next(groups, None)
    return None


def _suggest(model: type[BaseModel], location: tuple[str | int, ...]) -> str:
    group: type[BaseModel] = model
    for name in location[:-1]:
        if isinstance(name, str):
            group = group_of(group.model_fields[name].annotation) or group
    siblings, word = list(group.model_fields), str(location[-1])
    hint = did_you_mean(word, siblings)
    if hint:
        return hint
    for name, field in model.model_fields.items():
        other = group_of(field.annotation)
        if other and word in other.model_fields:
            return f"; did you mean {name + '.' + word!r}?"
    return f"; expected one of {', '.join(siblings)}"
