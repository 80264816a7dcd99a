"""What is wrong with a Serve config file, by Ray's own schema.

Ray ignores keys it does not know, so that older versions read newer files; a mistyped key would pass unseen.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from serve_app.problems import describe, group_of, unknown_key


def problems(document: Mapping[str, Any]) -> list[str]:
    """One line per wrong key: where, what was expected, what came. What `args` hold is not Ray's business."""
    from ray.serve.schema import ServeDeploySchema  # a second, which no other command needs

    found = [unknown_key(ServeDeploySchema, place) for place in _unknown(ServeDeploySchema, document, ())]
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        found += [describe(ServeDeploySchema, one["loc"], one) for one in error.errors(include_url=False)]
    return list(dict.fromkeys(found))  # some of Ray's groups refuse unknown keys themselves


def _unknown(
    group: type[BaseModel], values: Mapping[str, Any], place: tuple[str | int, ...]
) -> Iterator[tuple[str | int, ...]]:
    """The places of keys that no field of the group stands for, at any depth."""
    for key, value in values.items():
        here = (*place, key)
        if key not in group.model_fields:
            yield here
        elif inner := group_of(annotation := group.model_fields[key].annotation):
            if isinstance(value, Mapping) and get_origin(annotation) is not list:
                yield from _unknown(inner, value, here)
            elif isinstance(value, list):
                for number, item in enumerate(value):
                    if isinstance(item, Mapping):
                        yield from _unknown(inner, item, (*here, number))
