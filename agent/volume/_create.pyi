def create_files(
    directory: int,
    names: tuple[bytes, ...],
    contents: tuple[bytes | bytearray | memoryview, ...],
    facts: bytes,
    /,
) -> bytes: ...
