"""The kernel ``_crc`` in Python, a bit at a time: what it has to return."""


def crc32c(buffer: bytes) -> int:
    return reflected(buffer, 0x82F63B78, 32)


def crc64nvme(buffer: bytes) -> int:
    return reflected(buffer, 0x9A6C9329AC4BC9B5, 64)


def reflected(buffer: bytes, polynomial: int, width: int) -> int:
    ones = (1 << width) - 1
    state = ones
    for byte in buffer:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (polynomial if state & 1 else 0)
    return state ^ ones
