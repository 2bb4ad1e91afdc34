"""What we show of a repository is what restic shows of it, and GNU tar unpacks what we dump."""

import os
import shutil
import subprocess
from pathlib import Path

from agent.cancel import NEVER
from agent.repository.crypto import OVERHEAD
from agent.repository.difference import Difference
from agent.repository.paths import find, walk
from agent.repository.stats import measure
from agent.storage.contract import Storage
from agent.transfer.dump import dump_file, dump_tar
from tests.interop.runs import back_up, open_at
from tests.interop.test_restic import lines, old
from tests.interop.volumes import AS_ROOT, differences
from tests.support.restic import Restic


def unpack(archive: Path, target: Path) -> str:
    """Let GNU tar unpack an archive with all that is in it; return what it complains about."""
    target.mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", str(archive)]
    done = subprocess.run(
        [*command, "--warning=no-timestamp", "-C", str(target)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )
    known = "Ignoring unknown extended header keyword 'hdrcharset'"  # names that are not UTF-8
    return "".join(line for line in done.stderr.splitlines() if known not in line)


def archived(repo: Path | Storage, path: bytes, out: Path) -> None:
    repository = open_at(repo)
    reader = repository.reading()
    place = find(reader.load_tree, repository.snapshot("latest").tree, path)
    with out.open("wb") as file:
        dump_tar(reader, place, file.write, NEVER)


def test_gnu_tar_unpacks_everything(made: Path, sample: Path, tmp_path: Path) -> None:
    archived(made, b"/", tmp_path / "all.tar")
    assert unpack(tmp_path / "all.tar", tmp_path / "target") == ""
    assert differences(sample, tmp_path / "target") == []


def test_gnu_tar_unpacks_one_directory_to_where_it_was(
    made: Path, sample: Path, tmp_path: Path
) -> None:
    archived(made, b"/names", tmp_path / "names.tar")
    assert unpack(tmp_path / "names.tar", tmp_path / "target") == ""
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["names"]
    assert differences(sample / "names", tmp_path / "target" / "names") == []


def test_gnu_tar_notices_an_archive_without_its_end(made: Path, tmp_path: Path) -> None:
    archived(made, b"/", tmp_path / "all.tar")
    with (tmp_path / "all.tar").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 1024 - 700)
    done = subprocess.run(["tar", "-tf", tmp_path / "all.tar"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Unexpected EOF" in done.stderr


def test_gnu_tar_reads_a_file_above_8_gib_and_what_comes_behind_it(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    with (volume / "huge").open("wb") as file:
        file.truncate((8 << 30) + 5)  # a hole: one chunk
    (volume / "last").write_text("last")
    back_up(tmp_path / "repo", volume)
    repository = open_at(tmp_path / "repo")
    reader = repository.reading()
    place = find(reader.load_tree, repository.snapshot("latest").tree, b"/")
    archive = tmp_path / "all.tar"
    with archive.open("wb") as file:
        zeros = bytes(512 << 10)

        def write(data: bytes) -> None:  # with holes, so that it costs no disk
            if data == zeros:
                file.seek(len(data), os.SEEK_CUR)
            else:
                file.write(data)

        dump_tar(reader, place, write, NEVER)
    assert archive.stat().st_size > 8 << 30
    done = subprocess.run(["tar", "-tvf", archive], capture_output=True, text=True, check=True)
    listed = [line.split() for line in done.stdout.splitlines()]
    assert [(line[2], line[-1]) for line in listed] == [
        (str((8 << 30) + 5), "huge"),
        ("4", "last"),
    ]


def test_restic_dumps_the_same_bytes(restic: Restic, made: Path, tmp_path: Path) -> None:
    repository = open_at(made)
    reader = repository.reading()
    tree = repository.snapshot("latest").tree
    for path in ("/large", "/text", "/kinds/sparse", "/names/<&>", "/empty", "/small/file-007"):
        ours = tmp_path / "ours"
        with ours.open("wb") as file:
            place = find(reader.load_tree, tree, path.encode())
            dump_file(reader, place, file.write, NEVER)
        with (tmp_path / "theirs").open("wb") as file:
            subprocess.run(
                [restic.binary, "-r", made, "dump", "--no-lock", "latest", path],
                stdout=file,
                check=True,
                env={"RESTIC_PASSWORD": "secret", "HOME": str(restic.home)},
            )
        assert ours.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_restic_lists_the_same_entries(restic: Restic, made: Path) -> None:
    theirs = {
        line["path"]: (line["type"], line.get("size", 0), line["uid"], line["gid"])
        for line in lines(restic, made, "ls", "latest")
        if line["struct_type"] == "node"
    }
    repository = open_at(made)
    load_tree = repository.reading().load_tree
    words = {"directory": "dir", "block_device": "dev", "character_device": "chardev"}
    ours = {}
    for path, entry in walk(load_tree, find(load_tree, repository.snapshot("latest").tree, b"/")):
        word = entry.kind.name.lower()
        shown = path.decode("utf-8", "replace")
        ours[shown] = (words.get(word, word), entry.size, entry.uid, entry.gid)
    assert ours == theirs
    assert len(ours) > 170 + (2 if AS_ROOT else 0)


def test_restic_counts_the_same_sizes(restic: Restic, repo: Path, sample: Path) -> None:
    changed = repo.parent / "volume"
    shutil.copytree(sample / "small", changed / "small")
    (changed / "other").write_bytes(b"other" * 1000)
    os.link(changed / "other", changed / "small" / "again")
    back_up(repo, changed)
    repository = open_at(repo)
    for chosen in ([], ["latest"]):
        snapshots = repository.snapshots()[-1:] if chosen else repository.snapshots()
        ours = measure(repository, snapshots)
        (size,) = lines(restic, repo, "stats", *chosen, "--mode", "restore-size")
        (raw,) = lines(restic, repo, "stats", *chosen, "--mode", "raw-data")
        assert size["total_size"] == ours.restore_bytes
        assert size["total_file_count"] == ours.files + ours.directories + ours.others
        assert raw["total_size"] == ours.stored_bytes
        assert raw["total_blob_count"] == ours.data_blobs + ours.tree_blobs
        if not old(restic):  # it counts the seal of each blob as part of its plain size
            seals = OVERHEAD * raw["total_blob_count"]
            assert raw["total_uncompressed_size"] == ours.plain_bytes + seals


def test_restic_finds_the_same_differences(
    restic: Restic, repo: Path, sample: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "volume"
    shutil.copytree(sample / "small", changed / "small")
    (changed / "dir").mkdir()
    (changed / "dir" / "file").write_text("x")
    (changed / "kind").write_text("x")
    (changed / "link").symlink_to("one")
    back_up(repo, changed)
    (changed / "small" / "file-000").write_bytes(b"changed")
    (changed / "small" / "file-001").unlink()
    (changed / "small" / "file-002").chmod(0o600)
    shutil.rmtree(changed / "dir")
    (changed / "kind").unlink()
    (changed / "kind").mkdir()
    (changed / "kind" / "inside").write_text("new")
    (changed / "added").write_bytes(b"added")
    back_up(repo, changed)
    repository = open_at(repo)
    _, before, after = repository.snapshots()
    reader = repository.reading()
    found = Difference(reader.load_tree, reader.chunk_size)
    ours = {(c.mark.value, c.path.decode()) for c in found.walk(before.tree, after.tree)}
    done = restic.run(str(repo), "diff", before.id, after.id).stdout
    theirs = {
        (line[0], line[1:].strip())
        for line in done.splitlines()
        if line[:1] in "+-MTU" and line[1:].strip().startswith("/")
    }
    more = {("+", "/kind/inside")}  # restic does not enter a directory that took a file's place
    assert ours - more == theirs
    assert more < ours
    (said,) = [line for line in done.splitlines() if line.startswith("Files:")]
    numbers = [int(word) for word in said.replace(",", "").split() if word.isdigit()]
    changed_kind = inside = 1  # restic counts neither
    assert numbers == [
        found.added.files - inside,
        found.removed.files - changed_kind,
        found.changed_files,
    ]
