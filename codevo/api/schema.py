"""The part of JSON Schema that request bodies are described and checked with.

Known: ``type`` (also a list), ``enum``, ``properties``, ``required``, ``additionalProperties: false``,
``items``, ``minItems``, ``maxItems``, ``minLength``, ``maxLength``, ``pattern``, ``minimum``, ``maximum``,
``description``.
"""

from __future__ import annotations

import re
from typing import Any

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_WORDS = {
    "object": "an object",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


class Invalid(ValueError):
    """The value does not fit; ``field`` is its path (``settings.public_ports.0``), "" for the whole."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name in ("integer", "number"):
        return False
    return isinstance(value, _TYPES[name])


def validate(value: Any, schema: Schema, field: str = "") -> None:
    """Raises `Invalid` for the first thing that does not fit."""
    where = field or "The body"
    types = schema.get("type")
    if types is not None:
        names = [types] if isinstance(types, str) else types
        if not any(_is(value, name) for name in names):
            raise Invalid(field, f"{where}: expected {' or '.join(_WORDS[n] for n in names)}.")
    if "enum" in schema and value not in schema["enum"]:
        raise Invalid(field, f"{where}: expected one of {', '.join(map(str, schema['enum']))}.")
    if isinstance(value, dict):
        _object(value, schema, field)
    elif isinstance(value, list):
        _bounds(
            len(value), schema.get("minItems"), schema.get("maxItems"), f"{where}: the number of items", field
        )
        for i, item in enumerate(value):
            validate(item, schema.get("items", {}), f"{field}.{i}" if field else str(i))
    elif isinstance(value, str):
        _bounds(len(value), schema.get("minLength"), schema.get("maxLength"), f"{where}: the length", field)
        if "pattern" in schema and not re.search(schema["pattern"], value):
            raise Invalid(field, f"{where}: {schema.get('description', 'not in the form that is expected')}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _bounds(value, schema.get("minimum"), schema.get("maximum"), where, field)


def _object(value: dict[str, Any], schema: Schema, field: str) -> None:
    properties: dict[str, Schema] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            path = f"{field}.{name}" if field else name
            raise Invalid(path, f"{path} is missing.")
    for name, item in value.items():
        path = f"{field}.{name}" if field else name
        if name in properties:
            validate(item, properties[name], path)
        elif schema.get("additionalProperties") is False:
            known = ", ".join(properties) or "nothing"
            raise Invalid(path[:100], f"{path[:100]} is not known here. Known: {known}.")


def _bounds(n: float, low: float | None, high: float | None, what: str, field: str) -> None:
    if low is not None and n < low:
        raise Invalid(field, f"{what} must be at least {low}.")
    if high is not None and n > high:
        raise Invalid(field, f"{what} must be at most {high}.")
