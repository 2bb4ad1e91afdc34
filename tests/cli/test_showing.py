"""snapshots, ls, diff, stats and dump: what they print, refuse and end with."""

import base64
import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agent.demo.compare import differences
from tests.cli.conftest import PROJECT, Run, started

HARMFUL = b"evil\x1b[2J\r\xff"


@pytest.fixture
def rich(podlift: Run, repo: Path, source: Path) -> Path:
    """Back up a source with names and content that are no text; return it."""
    Path(os.fsdecode(bytes(source) + b"/" + HARMFUL)).write_bytes(b"x")
    (source / "below" / "deep").mkdir()
    (source / "below" / "deep" / "binary").write_bytes(bytes(range(256)) * 5000)
    os.setxattr(source / "file", "user.note", b"\0")
    assert podlift("backup", source, "--repo", repo, "--host", "one").code == 0
    return source


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


class TestHelp:
    @pytest.mark.parametrize(
        ("command", "words"),
        [
            ("snapshots", "--host;--tag;--path;--latest;any of them will do;podlift snapshots"),
            ("ls", "--recursive;--long;--json;path_base64;podlift ls latest"),
            ("diff", "--metadata;--json;became another kind;before deduplication;podlift diff"),
            ("stats", "several names once;--json;Unique content;podlift stats"),
            ("dump", "--archive;--output;pipefail;--xattrs-include;without its end"),
        ],
    )
    def test_a_commands_page_teaches_it(self, podlift: Run, command: str, words: str) -> None:
        done = podlift(command, "-h")
        assert done.code == 0
        for word in words.split(";"):
            assert word in " ".join(done.out.split())
        assert f"  {command} " in podlift("-h").out


class TestSnapshots:
    def test_filters_choose(self, podlift: Run, repo: Path, rich: Path) -> None:
        podlift("backup", rich, "--repo", repo, "--host", "two", "--tag", "a=b")
        podlift("backup", rich, "--repo", repo, "--host", "two", "--tag", "c=d")

        def chosen(*options: str) -> list[str]:
            found = podlift("snapshots", "--repo", repo, "--json", *options).json
            return [s["hostname"] + "".join(s.get("tags") or ()) for s in found]

        assert chosen() == ["one", "twoa=b", "twoc=d"]
        assert chosen("--host", "two") == ["twoa=b", "twoc=d"]
        assert chosen("--tag", "a=b") == ["twoa=b"]
        assert chosen("--latest", "1") == ["one", "twoc=d"]
        assert chosen("--path", str(rich), "--host", "one") == ["one"]
        assert chosen("--path", "/elsewhere") == []
        assert podlift("snapshots", "--repo", repo, "--latest", "0").code == 2


class TestLs:
    def test_everything_without_a_path_and_one_directory_with_one(
        self, podlift: Run, repo: Path, rich: Path
    ) -> None:
        def paths(*options: str) -> list[str]:
            done = podlift("ls", "latest", "--repo", repo, *options)
            assert done.code == 0
            return done.out.splitlines()

        every = paths()
        assert len(every) == 7
        assert "/below/deep/binary" in every
        assert paths("/below") == ["/below/deep", "/below/other"]
        assert paths("below/", "--recursive") == [
            "/below/deep",
            "/below/deep/binary",
            "/below/other",
        ]
        assert paths("/file", "/below/deep") == ["/file", "/below/deep/binary"]
        assert "/below/deep/binary" not in paths("--no-recursive")

    def test_no_name_reaches_the_terminal_raw(self, podlift: Run, repo: Path, rich: Path) -> None:
        plain = podlift("ls", "latest", "--repo", repo).out
        assert r"/evil\x1b[2J\r\xff" in plain
        for form in ((), ("--long",), ("--json",)):
            out = podlift("ls", "latest", "--repo", repo, *form).out
            assert all(c.isprintable() or c == "\n" for c in out)

    def test_json_has_one_object_a_line_with_the_bytes_of_odd_names(
        self, podlift: Run, repo: Path, rich: Path
    ) -> None:
        found = objects(podlift("ls", "latest", "--repo", repo, "--json").out)
        assert len(found) == 7
        odd = next(e for e in found if "path_base64" in e)
        assert base64.b64decode(odd["path_base64"]) == b"/" + HARMFUL
        file = next(e for e in found if e["path"] == "/file")
        stat = (rich / "file").stat()
        assert file["type"] == "file"
        assert file["size"] == stat.st_size == 7000
        assert (file["uid"], file["gid"], file["links"]) == (stat.st_uid, stat.st_gid, 1)
        assert file["mode"] == f"{stat.st_mode & 0o7777:04o}"
        assert file["permissions"].startswith("-rw")
        assert file["mtime"].startswith("20")
        assert file["xattrs"] == ["user.note"]
        link = next(e for e in found if e["path"] == "/link")
        assert (link["type"], link["target"]) == ("symlink", "file")

    def test_a_path_that_is_not_there_ends_with_2(
        self, podlift: Run, repo: Path, rich: Path
    ) -> None:
        done = podlift("ls", "latest", "/below/none/at/all", "--repo", repo)
        assert done.code == 2
        assert done.out == ""
        assert "the nearest that is there is the directory /below" in done.err


class TestDiff:
    def test_signs_and_sums(self, podlift: Run, repo: Path, rich: Path) -> None:
        (rich / "below" / "other").unlink()
        (rich / "new").write_text("12345")
        os.utime(rich / "file", ns=(0, 0))
        (rich / "link").unlink()
        (rich / "link").mkdir()
        podlift("backup", rich, "--repo", repo, "--host", "one")
        one, two = (s["id"] for s in podlift("snapshots", "--repo", repo, "--json").json)
        done = podlift("diff", one[:8], "latest", "--repo", repo)
        assert done.code == 0
        assert done.out.splitlines() == [
            "-    /below/other",
            "T    /link/",
            "+    /new",
            "added:   1 files, 1 directories, 0 others, 5 B",
            "removed: 1 files, 0 directories, 1 others, 5 B",
            "changed: 0 files, 0 others",
        ]
        more = podlift("diff", one, two, "--repo", repo, "--metadata", "--json", "--no-lock")
        *changes, sums = objects(more.out)
        assert {(c["path"], c["modifier"]) for c in changes} >= {("/file", "U"), ("/new", "+")}
        assert sums["message_type"] == "statistics"
        assert (sums["source_snapshot"], sums["target_snapshot"]) == (one, two)
        assert sums["added"] == {"files": 1, "directories": 1, "others": 0, "bytes": 5}
        same = podlift("diff", two, two, "--repo", repo)
        assert same.out.splitlines()[0].startswith("added:   0 files")


class TestStats:
    def test_sums_for_people_and_for_scripts(self, podlift: Run, repo: Path, rich: Path) -> None:
        podlift("backup", rich, "--repo", repo, "--host", "one")
        size = 7000 + 5 + 1 + 256 * 5000
        one = podlift("stats", "latest", "latest", "--repo", repo, "--json").json
        assert (one["snapshots"], one["files"], one["restore_bytes"]) == (1, 4, size)
        every = podlift("stats", "--repo", repo, "--json", "--no-lock").json
        assert (every["snapshots"], every["files"], every["restore_bytes"]) == (2, 8, 2 * size)
        assert every["content_bytes"] == one["content_bytes"] <= size
        assert every["dedup_ratio"] >= 2
        out = podlift("stats", "--repo", repo).out
        for words in ("snapshots:       2", "2.5 MiB in 8 files, 4 directories, 2 others"):
            assert words in out
        assert "in 2 packs" in out

    def test_an_empty_repository_has_sizes_too(self, podlift: Run, repo: Path) -> None:
        done = podlift("stats", "--repo", repo)
        assert done.code == 0
        assert "nothing is stored" in done.out


class TestDump:
    def dump(self, repo: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "agent", "dump", "latest", *arguments, "--repo", repo],
            cwd=PROJECT,
            capture_output=True,
            timeout=60,
        )

    def test_a_file_goes_to_stdout_and_to_a_file(
        self, podlift: Run, repo: Path, rich: Path, tmp_path: Path
    ) -> None:
        content = (rich / "below" / "deep" / "binary").read_bytes()
        done = self.dump(repo, "/below/deep/binary")
        assert (done.returncode, done.stdout, done.stderr) == (0, content, b"")
        out = tmp_path / "out"
        out.write_text("before")
        done2 = podlift("dump", "latest", "below/deep/binary", "--repo", repo, "-o", out)
        assert (done2.code, done2.out) == (0, "")
        assert out.read_bytes() == content

    def test_a_directory_and_a_file_become_archives(
        self, podlift: Run, repo: Path, rich: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        assert podlift("dump", "latest", "/", "--repo", repo, "--output", out).code == 0
        target = tmp_path / "target"
        with tarfile.open(out) as archive:
            archive.extractall(target, filter="fully_trusted")
        found = [line for line in differences(rich, target) if "attributes" not in line]
        assert [line for line in found if "mtime" not in line] == []  # it rounds times
        single = self.dump(repo, "file", "--archive", "tar")
        with tarfile.open(fileobj=io.BytesIO(single.stdout)) as archive:
            assert archive.getnames() == ["file"]

    def test_damage_ends_with_1_and_nothing_that_looks_whole(
        self, podlift: Run, repo: Path, rich: Path, tmp_path: Path
    ) -> None:
        biggest = max((p for p in (repo / "data").rglob("*") if p.is_file()), key=os.path.getsize)
        content = bytearray(biggest.read_bytes())
        content[: len(content) // 2] = os.urandom(len(content) // 2)
        biggest.chmod(0o600)
        biggest.write_bytes(content)
        out = tmp_path / "out"
        out.write_text("before")
        done = podlift("dump", "latest", "/", "--repo", repo, "-o", out)
        assert done.code == 1
        assert "is not complete" in done.err
        assert out.read_text() == "before"
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        piped = self.dump(repo, "/")
        assert piped.returncode == 1
        assert b"is not complete" in piped.stderr
        with pytest.raises(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(piped.stdout)) as a:
            a.getmembers()

    def test_a_broken_pipe_ends_quietly_with_1(self, repo: Path, rich: Path) -> None:
        for path in ("/", "/below/deep/binary"):
            with started("dump", "latest", path, "--repo", repo) as process:
                assert process.stdout is not None
                process.stdout.close()
                assert process.stderr is not None
                assert process.stderr.read() == ""
                assert process.wait(30) == 1
        assert list((repo / "locks").iterdir()) == []

    def test_a_terminal_gets_text_only(self, repo: Path, rich: Path) -> None:
        (rich / "text").write_text("grün\n\ttext\n")
        subprocess.run(
            [sys.executable, "-m", "agent", "backup", rich, "--repo", repo],
            cwd=PROJECT,
            check=True,
            capture_output=True,
        )
        for path, code, shown in (
            ("/text", 0, "grün\r\n\ttext\r\n"),
            ("/below/deep/binary", 2, ""),
            ("/below", 2, ""),
        ):
            main, side = pty.openpty()
            command = [sys.executable, "-m", "agent", "dump", "latest", path, "--repo", repo]
            process = subprocess.run(
                command, cwd=PROJECT, stdout=side, stderr=subprocess.PIPE, timeout=60
            )
            os.close(side)
            printed = b""
            try:
                while part := os.read(main, 4096):
                    printed += part
            except OSError:  # how a terminal says that nobody writes any more
                pass
            os.close(main)
            assert process.returncode == code
            assert printed.decode().expandtabs() == shown.expandtabs()
            assert (b"--output FILE" in process.stderr) == (code == 2)

    def test_an_output_that_cannot_be_made_ends_with_2(
        self, podlift: Run, repo: Path, rich: Path, tmp_path: Path
    ) -> None:
        done = podlift("dump", "latest", "file", "--repo", repo, "-o", tmp_path / "no" / "out")
        assert done.code == 2
        assert "cannot be written: No such file" in done.err
        assert podlift("dump", "latest", "file", "--repo", repo, "-o", "/dev/null").code == 0
        full = podlift("dump", "latest", "file", "--repo", repo, "-o", "/dev/full")
        assert full.code == 1
        assert "No space left" in full.err

    def test_without_a_stdout_it_says_where_else_to_write(self, repo: Path, rich: Path) -> None:
        command = ["sh", "-c", '"$@" >&-', "-", sys.executable, "-m", "agent"]
        done = subprocess.run(
            [*command, "dump", "latest", "/file", "--repo", repo],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "--output FILE" in done.stderr
