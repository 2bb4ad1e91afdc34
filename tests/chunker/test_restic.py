import hashlib
from pathlib import Path

from chunker import Parameters
from tests.chunker.contents import MIB, noise, text
from tests.chunker.cutting import cut, stream_of
from tests.chunker.resticcuts import restic_cuts
from tests.support.restic import Restic


def test_the_restic_that_is_here_cuts_by_its_own_polynomial_where_we_do(
    restic: Restic, tmp_path: Path
) -> None:
    files = {
        "noise": noise("live", 6 * MIB),
        "text": text("live", MIB),
        "hole": noise("live before", 600_000) + bytes(2 * MIB) + noise("live after", 600_000),
    }
    polynomial, theirs = restic_cuts(restic, tmp_path, files)
    stream = stream_of(Parameters(polynomial))

    for name, content in files.items():
        ours = cut([content], stream)
        assert [(len(c), hashlib.sha256(c).hexdigest()) for c in ours] == theirs[name], name
