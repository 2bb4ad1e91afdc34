import pytest

from chunker import Parameters
from tests.chunker.contents import contents
from tests.chunker.cutting import cut, stream_of
from tests.chunker.golden import GOLDEN


@pytest.mark.parametrize("name", contents())
@pytest.mark.parametrize("polynomial", GOLDEN, ids=hex)
def test_files_are_cut_where_real_restic_cut_them(polynomial: int, name: str) -> None:
    stream = stream_of(Parameters(polynomial))
    content = contents()[name]

    chunks = cut([content], stream)

    assert [len(chunk) for chunk in chunks] == GOLDEN[polynomial][name]
    assert b"".join(chunks) == content
