import pytest

from chunker import ChunkStream, Parameters
from tests.chunker.contents import contents
from tests.chunker.golden import GOLDEN


@pytest.mark.parametrize("name", contents())
@pytest.mark.parametrize("polynomial", GOLDEN, ids=hex)
def test_files_are_cut_where_real_restic_cut_them(polynomial: int, name: str) -> None:
    stream = ChunkStream(Parameters(polynomial))
    content = contents()[name]

    chunks = [*stream.feed(content), *stream.finish()]

    assert [len(chunk) for chunk in chunks] == GOLDEN[polynomial][name]
    assert b"".join(chunks) == content
