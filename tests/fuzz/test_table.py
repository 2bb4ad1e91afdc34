"""The table of decoders is complete: what is named or built like one has a row, or a reason."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import agent
from tests.fuzz.table import DECODERS

ROOT = Path(agent.__file__).parent

_NAME = re.compile(r"(decode|parse|read|unwrap|inflate|unquote|open|header)_?.*")
_CALL = re.compile(
    r"msgspec\.(json\.)?(decode|Decoder|convert)|json\.loads|.*\.(unpack(_from)?|iter_unpack)"
    r"|zlib\..*|.*Zstd(De)compressor.*|ET\.fromstring|.*safe_load|yaml\..*"
)

NOT_DECODERS = {
    "agent.repository.opening.open_repository": "opens by the decoders of config and keys",
    "agent.repository.opening.open_or_create": "opens by the decoders of config and keys",
    "agent.repository.objects.read_config": "fetches what decode_config takes apart",
    "agent.repository.objects.read_file": "fetches what is unsealed later",
    "agent.repository.objects.read_key": "fetches what decode_key takes apart",
    "agent.repository.ranges.read_blobs": "reads ranges, which BlobOpener opens",
    "agent.storage.contract.read_range": "reads what a storage has",
    "agent.storage.opening.open_storage": "makes a storage of an address that was parsed",
    "agent.access.open_location": "makes a storage of settings",
    "agent.storage.opening.open_s3": "makes a storage of settings",
    "agent.volume.looking.read_files": "reads files: what they hold is data",
    "agent.volume.reader.open_root": "opens a directory",
    "agent.volume.xattrs.read_xattrs": "reads attributes: what they hold is data",
}
"""Functions of the names that decoders have."""

OWN_BYTES = {
    "agent.repository.sealing": "reads what the kernel has just answered",
    "agent.storage.models": "reads what botocore brings along",
    "agent.commands.facts": "shows what encode_snapshot has just made",
    "agent.volume.looking": "reads what the kernel has just answered",
}
"""Modules that take apart what this process has made itself."""


@functools.cache
def modules() -> dict[str, ast.Module]:
    paths = sorted(path for path in ROOT.rglob("*.py") if "demo" not in path.parts)
    names = [".".join(("agent", *path.relative_to(ROOT).with_suffix("").parts)) for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


def covered() -> set[str]:
    return {name for decoder in DECODERS for name in decoder.covers}


def functions_named_like_decoders() -> Iterator[str]:
    for module, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _NAME.fullmatch(
                node.name
            ):
                yield f"{module}.{node.name}"


def modules_that_take_bytes_apart() -> Iterator[str]:
    for module, tree in modules().items():
        calls = (ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call))
        if any(map(_CALL.fullmatch, calls)):
            yield module


def test_every_public_decoder_has_a_row() -> None:
    assert set(functions_named_like_decoders()) - covered() == set(NOT_DECODERS)


def test_every_module_that_takes_bytes_apart_has_a_row() -> None:
    with_rows = {name.rpartition(".")[0] for name in covered()} | covered()
    assert set(modules_that_take_bytes_apart()) - with_rows == set(OWN_BYTES)


def test_every_row_is_about_something_that_is_there() -> None:
    there = set(modules())
    for module, tree in modules().items():
        there |= {f"{module}.{n.name}" for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}  # fmt: skip
    assert covered() <= there
    assert len({decoder.name for decoder in DECODERS}) == len(DECODERS)
