"""What the real restic does to files: its polynomial, and the lengths of its chunks."""

import json
from pathlib import Path

from tests.support.restic import Restic


def restic_cuts(
    restic: Restic, work: Path, files: dict[str, bytes]
) -> tuple[int, dict[str, list[tuple[int, str]]]]:
    """Back up ``files`` by restic; return its polynomial and each file's chunk lengths."""
    repo, source = str(work / "repo"), work / "source"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    restic.run(repo, "init", "--repository-version", "2")
    polynomial = int(json.loads(restic.run(repo, "cat", "config").stdout)["chunker_polynomial"], 16)
    events = restic.run(repo, "backup", ".", "--json", cwd=source).stdout.splitlines()
    snapshot = json.loads(events[-1])["snapshot_id"]
    lengths = {}
    for index in restic.run(repo, "list", "index").stdout.split():
        for pack in json.loads(restic.run(repo, "cat", "index", index).stdout)["packs"]:
            for blob in pack["blobs"]:
                # A sealed blob is 32 bytes longer (restic-format.md section 4).
                lengths[blob["id"]] = blob.get("uncompressed_length", blob["length"] - 32)
    tree = json.loads(restic.run(repo, "cat", "snapshot", snapshot).stdout)["tree"]
    nodes = json.loads(restic.run(repo, "cat", "blob", tree).stdout)["nodes"]
    return polynomial, {
        node["name"]: [(lengths[blob], blob) for blob in node["content"]] for node in nodes
    }
