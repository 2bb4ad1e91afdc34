"""Exclude patterns: globs over paths relative to the volume's root.

- A pattern without a slash matches a name anywhere: ``*.log``, ``node_modules``.
- A pattern with a slash matches consecutive names anywhere: ``cache/tmp``; with a leading
  slash only from the root: ``/cache/tmp``.
- A trailing slash restricts it to directories.
- ``*`` and ``?`` stay within a name, ``**`` as a whole name spans any number of them,
  ``[a-z]`` and ``[!a-z]`` are classes, a backslash takes the next character literally.
- What lies below an excluded directory is excluded.

Names need not be UTF-8: a byte that does not decode counts as one character.
"""

import re
from collections.abc import Sequence

from agent.errors import UsageError


class Exclude:
    """A set of patterns, compiled once; false when it is empty."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Compile ``patterns``; raises ``UsageError`` that names the bad one."""
        sources = [_translate(pattern) for pattern in patterns]
        self._regex = re.compile("|".join(sources), re.DOTALL) if sources else None

    def __bool__(self) -> bool:
        return self._regex is not None

    def matches(self, path: bytes, is_directory: bool) -> bool:
        """Tell whether ``path`` (relative to the root) or a directory above it is excluded."""
        if self._regex is None:
            return False
        text = path.decode("utf-8", "surrogateescape")
        return self._regex.fullmatch(text + "/" if is_directory else text) is not None


def _bad(pattern: str, why: str) -> UsageError:
    return UsageError(f"exclude pattern {pattern!r} {why}")


def _translate(pattern: str) -> str:
    if "\0" in pattern:
        raise _bad(pattern, "holds a NUL character, which no name can")
    if pattern.startswith("!"):
        raise _bad(pattern, "is negated, which is not supported; write \\! for a name with !")
    body = pattern.strip("/")
    if not body:
        raise _bad(pattern, "is empty; write a name, or leave it out")
    parts = [part for part in body.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise _bad(pattern, "holds . or .., which no path in a volume does; leave them out")
    start = "" if pattern.startswith("/") else "(?:.*/)?"
    end = "/.*" if pattern.endswith("/") and not pattern.endswith("\\/") else "(?:/.*)?"
    regex = start + _join(parts, pattern) + end
    try:
        re.compile(regex)
    except re.error as error:
        raise _bad(pattern, f"is not a valid glob: {error}") from error
    return regex


def _join(parts: list[str], pattern: str) -> str:
    """Return the regular expression of names joined by slashes; ``**`` may be no name at all."""
    out = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            if index and parts[index - 1] == "**":
                continue
            out += "[^/].*" if last else "(?:[^/]+/)*"
        else:
            out += _name(part, pattern) + ("" if last else "/")
    return out


def _name(part: str, pattern: str) -> str:
    out = ""
    position = 0
    while position < len(part):
        char = part[position]
        position += 1
        if char == "*":
            if not out.endswith("[^/]*"):
                out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[":
            source, position = _class(part, position, pattern)
            out += source
        elif char == "\\":
            if position == len(part):
                raise _bad(pattern, "ends a name in a backslash; write two for a literal one")
            out += re.escape(part[position])
            position += 1
        else:
            out += re.escape(char)
    return out


def _class(part: str, position: int, pattern: str) -> tuple[str, int]:
    """Return the regular expression of the class that opens before ``position``, and its end."""
    negated = part[position : position + 1] in ("!", "^")
    first = position + negated
    end = part.find("]", first + 1)
    if end < 0:
        raise _bad(pattern, "opens a class that is not closed; write \\[ for a literal bracket")
    members = _members(part[first:end])
    return (f"(?:(?!/)[{'^' if negated else ''}{members}])", end + 1)


def _members(text: str) -> str:
    """Return the members of a class, single characters and ranges, for a regular expression."""
    out = ""
    position = 0
    while position < len(text):
        out += re.escape(text[position])
        if text[position + 1 : position + 2] == "-" and position + 2 < len(text):
            out += "-" + re.escape(text[position + 2])
            position += 2
        position += 1
    return out
