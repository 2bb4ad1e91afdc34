"""Damage at one place, as hypothesis draws it."""


def mutated(data: bytes, place: int, inserted: bytes, removed: int) -> bytes:
    place %= len(data) + 1
    return data[:place] + inserted + data[place + removed :]
