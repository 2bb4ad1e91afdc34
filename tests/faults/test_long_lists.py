"""Files with very long lists of chunks, which cost their owner nothing: a hole is enough."""

import json

import pytest

from agent.entry import Entry, Kind
from agent.errors import MalformedData
from agent.repository.tree import decode_tree, encode_tree
from agent.repository.zone import local_zone

IDS = [bytes([number]) * 32 for number in range(1, 4)]


def file_of(content: tuple[bytes, ...]) -> Entry:
    return Entry(
        name=b"f", kind=Kind.FILE, permissions=0o644, uid=0, gid=0, mtime_ns=0, ctime_ns=0,
        inode=1, device=1, content=content,
    )  # fmt: skip


def tree_with(content: str) -> bytes:
    return f'{{"nodes":[{{"name":"f","type":"file","content":{content}}}]}}'.encode()


@pytest.mark.parametrize("count", [0, 1, 2, 4095, 4096, 4097, 12_289])
def test_a_list_of_any_length_is_written_as_json_and_read_back(count: int) -> None:
    content = tuple(IDS[place // 5 % 3] for place in range(count))
    stored = encode_tree([file_of(content)], local_zone)
    assert json.loads(stored)["nodes"][0]["content"] == [id.hex() for id in content]
    assert decode_tree(stored)[0].content == content


def test_a_list_in_any_notation_of_json_is_read() -> None:
    first, second = IDS[0].hex(), IDS[1].hex()
    escaped = "".join(f"\\u{ord(char):04x}" for char in first)
    for notation in (f'[ "{first}" ,\n"{second}"]', f'["{escaped}","{second}"]'):
        assert decode_tree(tree_with(notation))[0].content == (IDS[0], IDS[1])


@pytest.mark.parametrize(
    "content",
    ["5", '"x"', "{}", "[5]", "[null]", '[""]', '["' + "a" * 63 + '"]', '["' + "g" * 64 + '"]',
     '["' + " " * 64 + '"]', '["' + "a" * 64 + "'," + "'" + "a" * 64 + '"]', "null",
     '["' + "a" * 31 + '","' + "a" * 30 + '"]', '["' + "a" * 64 + '","' + "é" * 32 + '"]'],
)  # fmt: skip
def test_a_list_that_is_not_one_of_ids_is_refused(content: str) -> None:
    with pytest.raises(MalformedData):
        decode_tree(tree_with(content))
