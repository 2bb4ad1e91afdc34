from chunker.kernel import Buffer

LANES: int

def scan(data: Buffer, history: Buffer, out: bytes, mod: bytes, mask: int, /) -> bytes: ...
