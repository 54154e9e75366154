"""YAML files that people write: task files and matrices, read as plain values or refused in a short sentence.

A file can make text, numbers, dates, lists and mappings, nothing else (`yaml.SafeLoader`), and it cannot be much larger
in memory than on disk: references to earlier values (`*name`) are refused, as nine of nine of nine make millions.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from clear.errors import InputError

MOST_BYTES = 2**20
MOST_BITS = 64  # of a whole number
MOST_SHOWN = 200  # characters of a value in a message
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80
# what constructors of YAML values raise for text that is none of them, such as !!bool perhaps
_NO_VALUE = (ValueError, OverflowError, TypeError, AttributeError, KeyError, IndexError)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The named fields of a YAML file; what: what is expected, as `a task file`, for messages.

    Raises InputError for a file that is absent, larger than MOST_BYTES, not UTF-8, not YAML, or holds no named fields.
    """
    import yaml  # type: ignore[import-untyped]  # no stubs among the dependencies

    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'does not exist'}; expected {what} (YAML)")
    try:
        raw = path.read_bytes()[: MOST_BYTES + 1]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected {what} (YAML)") from error
    if len(raw) > MOST_BYTES:
        raise InputError(f"{path}: larger than {MOST_BYTES >> 20} MiB; expected {what} of a few lines")
    try:
        data = yaml.load(raw.decode("utf-8"), _loader())
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; expected {what}") from None
    except _Refused as refusal:
        raise InputError(f"{path}: {refusal}") from None
    except RecursionError:
        raise InputError(f"{path}: its lists or mappings are nested too deeply; expected {what}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}: is not YAML{where}; expected lines such as `name: value`") from None
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        found = "nothing" if data is None else type(data).__name__
        raise InputError(f"{path}: expected fields with names, such as `name: value`; found {found}")
    return data


def shown(value: Any) -> str:
    """A value for a message, in few characters however large it is.

    >>> shown(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    text = _SHORT.repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


class _Refused(Exception):
    """What is YAML and yet no value that we read."""


def _loader() -> Any:
    """A SafeLoader without references, whose errors name the line."""
    import yaml

    class Plain(yaml.SafeLoader):  # type: ignore[misc]  # untyped
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                event = self.peek_event()
                name = shown(f"*{event.anchor}")
                raise _Refused(
                    f"line {event.start_mark.line + 1}: refers to an earlier value by {name}; write the value out, or "
                    "put text that begins with * into quotation marks"
                )
            return super().compose_node(parent, index)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                value = super().construct_object(node, deep)
                if isinstance(value, int) and value.bit_length() > MOST_BITS:
                    raise ValueError
            except _NO_VALUE:
                raise _Refused(
                    f"line {node.start_mark.line + 1}: {shown(node.value)} looks like a number, a date or a yes or no "
                    "and is none; write text into quotation marks"
                ) from None
            return value

    return Plain
