"""What all groups of `serve_app.settings` have in common."""

import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from serve_app.problems import group_of


class Group(BaseModel):
    """Common rules: no unknown key, no silent conversion, no change after loading; docstrings become descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _commented_out(cls, values: Any) -> Any:
        """Where everything below a key is commented out YAML reads None: that is an empty group or list, no mistake."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {
            name: _empty(fields[name].annotation) if value is None and name in fields else value
            for name, value in values.items()
        }


def _empty(annotation: object) -> Any:
    """What None stands for in a field of this type; None where it may be a value, or where a group needs some."""
    kind = typing.get_origin(annotation)
    if kind in (list, dict):
        return kind()
    if kind in (typing.Union, types.UnionType, None) and (group := group_of(annotation)):
        return None if any(field.is_required() for field in group.model_fields.values()) else {}
    return None
