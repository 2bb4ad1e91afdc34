"""Exclude patterns: globs over paths relative to the volume's root.

- A pattern without a slash matches a name anywhere: ``*.log``, ``node_modules``.
- A pattern with a slash matches consecutive names anywhere: ``cache/tmp``; with a leading
  slash only from the root: ``/cache/tmp``. ``cache/*`` is what lies in it, not the directory.
- A trailing slash restricts it to directories.
- ``*`` and ``?`` stay within a name, ``**`` as a whole name spans any number of them,
  ``[a-z]`` and ``[!a-z]`` are classes, a backslash takes the next character literally.
- What lies below an excluded directory is excluded.

Names need not be UTF-8: a byte that does not decode counts as one character.

Both patterns and names may be somebody's who means harm, so no pattern takes longer than its length
times the path's. What stands between two stars has a fixed length, and what stands between two ``**``
a fixed number of names: where it matches first is as good as anywhere later, since more is left for the
rest. So each such part is tried from left to right and, once it matches, never again (an atomic group).
A match holds up every other thread of the process, so many patterns are matched some at a time.
"""

import re
from collections.abc import Iterator, Sequence

from agent.errors import UsageError

_GROUP_CHARACTERS = 256
"""Patterns of together so many are one regular expression: 20 ms for the longest path there may be."""

_QUOTED = 120


class Exclude:
    """A set of patterns, compiled once; false when it is empty."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Compile ``patterns``; raises ``UsageError`` that names the bad one."""
        self._regexes = [
            re.compile("|".join(map(_translate, some)), re.DOTALL) for some in _groups(patterns)
        ]

    def __bool__(self) -> bool:
        return bool(self._regexes)

    def matches(self, path: bytes, is_directory: bool) -> bool:
        """Tell whether ``path`` (relative to the root) or a directory above it is excluded."""
        if not self._regexes:
            return False
        text = path.decode("utf-8", "surrogateescape") + "/" * is_directory
        return any(regex.fullmatch(text) is not None for regex in self._regexes)


def _groups(patterns: Sequence[str]) -> Iterator[list[str]]:
    """Divide patterns into groups of so many characters at most, or of one."""
    group: list[str] = []
    for pattern in patterns:
        if group and sum(map(len, group)) + len(pattern) > _GROUP_CHARACTERS:
            yield group
            group = []
        group.append(pattern)
    if group:
        yield group


def _bad(pattern: str, why: str) -> UsageError:
    shown = pattern if len(pattern) <= _QUOTED else f"{pattern[:_QUOTED]}…"
    return UsageError(f"exclude pattern {shown!r} {why}")


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
    end = "/.*" if pattern.endswith("/") and not pattern.endswith("\\/") else "(?:/.*)?"
    regex = _join(parts, pattern, anywhere=not pattern.startswith("/")) + end
    try:
        re.compile(regex)
    except re.error as error:
        raise _bad(pattern, f"is not a valid glob: {error}") from error
    return regex


def _join(parts: list[str], pattern: str, *, anywhere: bool) -> str:
    """Return the regular expression of names joined by slashes; ``**`` may be no name at all.

    It ends where a name does; ``anywhere`` lets it begin at any name.
    """
    out, names, floating = "", [], anywhere
    for part in parts:
        if part != "**":
            names.append(_name(part, pattern))
            continue
        if names:
            out += _run(names, floating=floating) + "/"
        names, floating = [], True
    if names:
        return out + _run(names, floating=floating)
    return out + "[^/].*"


def _run(names: list[str], *, floating: bool) -> str:
    """Return the regular expression of names that follow each other, from the earliest place or here."""
    run = "/".join(names)
    return f"(?>(?:[^/]++/)*?{run})" if floating else run


def _name(part: str, pattern: str) -> str:
    """Return the regular expression of one whole name, which matches it in one way only."""
    first, *rest = _fixed(part, pattern)
    out = first or "(?=[^/])"  # a name is never empty: x/* is not x
    if rest:
        out += "".join(f"(?>[^/]*?{fixed})" for fixed in rest[:-1] if fixed)
        out += "[^/]*" + rest[-1]
    return f"(?>{out}(?=/|\\Z))"


def _fixed(part: str, pattern: str) -> list[str]:
    """Return the regular expressions of what stands between the stars: of fixed length each."""
    out = [""]
    position = 0
    while position < len(part):
        char = part[position]
        position += 1
        if char == "*":
            out.append("")
        elif char == "?":
            out[-1] += "[^/]"
        elif char == "[":
            source, position = _class(part, position, pattern)
            out[-1] += source
        elif char == "\\":
            if position == len(part):
                raise _bad(pattern, "ends a name in a backslash; write two for a literal one")
            out[-1] += re.escape(part[position])
            position += 1
        else:
            out[-1] += re.escape(char)
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
