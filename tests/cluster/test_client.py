"""What answers of the API server are turned into, by values."""

import pytest

from agent.cluster import client
from agent.cluster.client import decode
from agent.cluster.objects import Pod
from agent.errors import ClusterError

DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize("body", [b"", b"\xff", b'{"metadata": {"more": %s}}' % DEEP])
def test_what_is_no_object_is_refused_without_quoting_it(body: bytes) -> None:
    with pytest.raises(ClusterError, match="a pod is not shaped as expected: it is not JSON"):
        decode(body, Pod, "a pod")


@pytest.mark.parametrize("body", [b"", b'{"message": "\xff"}', DEEP, b'{"message": 5}'])
def test_a_refusal_that_cannot_be_read_says_nothing(body: bytes) -> None:
    assert client._status_message(body) == ""
