"""Selection: which entries of a snapshot a restore is about, by paths from the snapshot's root."""

from collections.abc import Sequence

from agent.volume.exclude import Exclude


class Selection:
    """Patterns to include (none: everything) and to exclude; an exclusion always wins."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Compile the patterns; raises ``UsageError`` that names the bad one."""
        self._include = Exclude(include)
        self._exclude = Exclude(exclude)

    @property
    def everything(self) -> bool:
        """Tell whether nothing at all is left out."""
        return not self._include and not self._exclude

    @property
    def excludes(self) -> bool:
        """Tell whether there is any exclusion."""
        return bool(self._exclude)

    def spares(self, path: bytes) -> bool:
        """Tell whether an exclusion may mean what is there, whatever it is: nobody removes it."""
        return self._exclude.matches(path, True) or self._exclude.matches(path, False)

    def wants(self, path: bytes, is_directory: bool) -> bool:
        """Tell whether an entry is to be restored; what lies below a wanted directory is."""
        if self._exclude and self._exclude.matches(path, is_directory):
            return False
        return not self._include or self._include.matches(path, is_directory)

    def leads_on(self, path: bytes) -> bool:
        """Tell whether something below a directory may be wanted."""
        return not self._exclude or not self._exclude.matches(path, True)
