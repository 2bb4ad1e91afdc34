"""What is wished of one backup: by annotations of its objects, and by Velero's uploaderSettings.

Three objects may bear annotations: the PodVolumeBackup, the claim (PersistentVolumeClaim) and the pod.
Of a single value the most special one counts: a PodVolumeBackup is one backup, a claim one volume, a
pod all of its volumes. Exclude patterns are added together, since each of them is something that
somebody does not want. A wish that cannot be understood fails the backup: one that
was silently ignored would be found out on the day of the restore.

A pod's owner may mean harm: what is taken is bounded, and everything quoted is cut.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from agent.cluster.order import PREFIX, Order, ours
from agent.config import Compression
from agent.errors import ClusterError

OnReadError = Literal["warn", "fail"]

EXCLUDE = f"{PREFIX}exclude"
ON_READ_ERROR = f"{PREFIX}on-read-error"
COMPRESSION = f"{PREFIX}compression"
KNOWN = (EXCLUDE, ON_READ_ERROR, COMPRESSION)

PARALLEL_FILES = "ParallelFilesUpload"
"""The one key of ``spec.uploaderSettings`` of a backup (velero.md section 2.2); "0" is the default."""

MOST_PATTERNS = 100
MOST_CHARACTERS = 2048
"""Of all patterns together: what a path costs is at most this times its length (volume/exclude.py)."""

NAMED_UNKNOWN = 3
_QUOTED = 120

_NUMBER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Annotated:
    """An object in words, and its annotations."""

    what: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pattern:
    """An exclude pattern, and where it comes from in words."""

    glob: str
    origin: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was wished; None (and 0 files at once) where nothing was. ``warnings`` are for people."""

    excludes: tuple[Pattern, ...] = ()
    on_read_error: OnReadError | None = None
    compression: Compression | None = None
    files_at_once: int = 0
    warnings: tuple[str, ...] = ()


def read_wishes(order: Order, objects: Sequence[Annotated]) -> Wishes:
    """Read what is wished of a backup; ``objects`` are its claim and its pod, in this order.

    Raises ``ClusterError`` that names object, annotation, value and what may stand there.
    """
    bearers = [Annotated(f"{order.kind.value} {order.name}", order.annotations), *objects]
    return Wishes(
        excludes=_excludes(bearers),
        on_read_error=_choice(bearers, ON_READ_ERROR, OnReadError),
        compression=_choice(bearers, COMPRESSION, Compression),
        files_at_once=_files_at_once(order),
        warnings=tuple(_unknown(bearers)),
    )


def _excludes(bearers: Sequence[Annotated]) -> tuple[Pattern, ...]:
    found: dict[str, Pattern] = {}
    characters = 0
    for bearer in bearers:
        text = bearer.annotations.get(EXCLUDE, "")
        characters += len(text)
        origin = _origin(bearer, EXCLUDE)
        if characters > MOST_CHARACTERS:
            raise ClusterError(
                f"{origin}, with those of the other objects, has more than {MOST_CHARACTERS}"
                " characters: leave directories out in place of what is in them"
            )
        for glob in _split(text):
            found.setdefault(glob, Pattern(glob, origin))
        if len(found) > MOST_PATTERNS:
            raise ClusterError(
                f"{origin}, with those of the other objects, has more than {MOST_PATTERNS} patterns:"
                " leave directories out in place of what is in them"
            )
    return tuple(found.values())


def _split(text: str) -> list[str]:
    """Return the patterns of lines and of what stands between commas; a backslash keeps a comma."""
    found = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            found[-1] += character + following.strip("\n")
            if following == "\n":
                found.append("")
        elif character in ",\n":
            found.append("")
        else:
            found[-1] += character
    return [pattern for each in found if (pattern := each.strip())]


def _choice(bearers: Sequence[Annotated], key: str, values: Any) -> Any:
    """Return the one of ``values``, a ``Literal``, that the first bearer says; check all of them."""
    found = None
    words = get_args(values)
    for bearer in bearers:
        if key not in bearer.annotations:
            continue
        value = bearer.annotations[key].strip()
        if value not in words:
            listed = f"{', '.join(words[:-1])} or {words[-1]}"
            raise ClusterError(f"{_origin(bearer, key)} must be {listed}, not {_cut(value)!r}")
        found = found or value
    return found


def _files_at_once(order: Order) -> int:
    text = order.uploader_settings.get(PARALLEL_FILES, "0")
    if not _NUMBER.fullmatch(text):
        raise ClusterError(
            f"spec.uploaderSettings.{PARALLEL_FILES} of {order.kind.value} {order.name} must be a number"
            f" of files, or 0 for the agent's own choice, not {_cut(text)!r}"
        )
    return int(text)


def _unknown(bearers: Sequence[Annotated]) -> Iterator[str]:
    """Yield a word of each annotation with our prefix that is none of ours, up to a few."""
    unknown = [
        (bearer, key)
        for bearer in bearers
        for key in sorted(ours(bearer.annotations))
        if key not in KNOWN
    ]
    for bearer, key in unknown[:NAMED_UNKNOWN]:
        names = [known.removeprefix(PREFIX) for known in KNOWN]
        near = difflib.get_close_matches(_cut(key.removeprefix(PREFIX)), names, 1)
        meant = f"; {PREFIX}{near[0]} may be meant" if near else f"; known are {', '.join(KNOWN)}"
        yield f"{_origin(bearer, _cut(key))} is not known and was ignored{meant}"
    if len(unknown) > NAMED_UNKNOWN:
        yield f"{len(unknown) - NAMED_UNKNOWN} more annotations are not known"


def _origin(bearer: Annotated, key: str) -> str:
    return f"annotation {key} of {bearer.what}"


def _cut(text: str) -> str:
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
