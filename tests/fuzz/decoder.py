"""A row of the table: one decoder of what others wrote, and what may come of calling it."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from hypothesis import strategies as st

from agent.errors import MESSAGE_CHARACTERS
from tests.fuzz.mutation import (
    bytes_like,
    json_like,
    text_like,
    worst_bytes,
    worst_json,
    worst_text,
)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """``call`` takes an example, or what became of one, and returns a ``result`` or raises ``errors``.

    ``covers`` are what this row is about in agent/: ``module.function``, or a whole module.
    """

    name: str
    call: Callable[[Any], object]
    form: Literal["json", "bytes", "text"]
    examples: Sequence[Any]
    errors: tuple[type[Exception], ...]
    result: type | tuple[type, ...]
    covers: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    share: float = 1.0
    """How often it is tried, compared with the others: less if a call is slow."""

    def inputs(self) -> st.SearchStrategy[Any]:
        """Return what to try."""
        if self.form == "json":
            return json_like(self.examples, self.words)
        return text_like(self.examples) if self.form == "text" else bytes_like(self.examples)

    def worst(self) -> Iterator[Any]:
        """Yield what is tried every time, beginning with the examples."""
        change = {"json": worst_json, "text": worst_text, "bytes": worst_bytes}[self.form]
        for example in self.examples:
            yield example
            yield from itertools.islice(change(example), 0, None, round(1 / self.share))

    def check(self, content: Any) -> None:
        """Decode; fail unless a value of the right type or an error of ours comes out."""
        try:
            found = self.call(content)
        except self.errors as error:
            told = str(error)
            assert len(told) <= MESSAGE_CHARACTERS, f"{len(told)} characters: {told[:200]}"
            assert told.isprintable(), told  # one line, which fits into a log and a patch
        else:
            assert isinstance(found, self.result), found
