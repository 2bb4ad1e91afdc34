"""What each command does, says, and ends with."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import agent.cli
from agent import __version__
from agent.demo.compare import differences
from agent.repository.opening import open_repository
from agent.storage.local import LocalStorage
from tests.cli.conftest import PASSWORD, Run, started
from tests.e2e.scene import WITHOUT_OVERRIDE
from tests.support.restic import Restic
from tests.support.s3servers import S3Server

COMMANDS = ("agent", "backup", "check", "demo", "init", "ls", "restore", "snapshots", "status")


class TestHelp:
    def test_the_first_page_names_every_command_and_exit_code(self, podlift: Run) -> None:
        done = podlift("--help")
        assert done.code == 0
        for command in COMMANDS:
            assert re.search(rf"^  {command} ", done.out, re.MULTILINE)
        for code in ("0 done", "1 failed", "2 usage", "3 done but", "10 no repository"):
            assert code in done.out
        for code in ("11 locked", "12 wrong password", "130 interrupted"):
            assert code in done.out
        assert "PODLIFT_PASSWORD" in done.out

    def test_it_says_of_every_command_what_it_does_in_a_whole_sentence(self, podlift: Run) -> None:
        told = podlift("--help").out.partition("Commands:\n")[2]
        sentences = [" ".join(each.split()) for each in re.split(r"\n  (?=\w)", told)]
        assert len(sentences) == len(agent.cli.COMMANDS)
        assert all(each.endswith(".") for each in sentences), sentences
        assert "..." not in told

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            ("agent", "only podlift can restore them;NODE_NAME;/host_pods;--other-uploader-types"),
            ("backup", "named and left out;exit code is 3;auto|none|ID;--exclude;K=V;--json"),
            ("check", "--read-data;exit code 1"),
            ("demo", "--megabytes;--keep;podlift[demo]"),
            ("init", "format 2;--password-file"),
            ("ls", "latest;--long"),
            ("restore", "--target;latest;exit code is 3"),
            ("snapshots", "oldest first;--json"),
        ],
    )
    def test_a_commands_page_teaches_it(self, podlift: Run, command: str, words: str) -> None:
        done = podlift(command, "-h")
        assert done.code == 0
        text = " ".join(done.out.split())
        for word in words.split(";"):
            assert word in text

    def test_the_version_is_told(self, podlift: Run) -> None:
        assert podlift("--version").out.strip().endswith(__version__)


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "Usage"),
            (("lift",), "No such command"),
            (("snapshot",), "No such command 'snapshot'. Did you mean snapshots?"),
            (("backup", "--repo", "r"), "Missing argument"),
            (("backup", "."), "--repo"),
            (("restore", "latest", "--repo", "r"), "--target"),
            (("backup", ".", "--repo", "sftp:host:/x"), "sftp"),
            (("backup", ".", "--repo", "r", "--tag", "novalue"), "KEY=VALUE"),
            (("backup", ".", "--repo", "r", "--tag", "a=1", "--tag", "a=2"), "given twice"),
            (("backup", ".", "--repo", "r", "--lock-wait", "-1"), "--lock-wait"),
            (("backup", ".", "--repo", "r", "--lock-wait", "nan"), "--lock-wait"),
            (("demo", "--megabytes", "1"), "--megabytes"),
        ],
    )
    def test_what_cannot_be_meant_ends_with_2(
        self, podlift: Run, arguments: tuple[str, ...], words: str
    ) -> None:
        done = podlift(*arguments)
        assert done.code == 2
        assert words in done.out + done.err

    def test_a_pattern_that_is_none_ends_with_2(
        self, podlift: Run, repo: Path, source: Path
    ) -> None:
        done = podlift("backup", source, "--repo", repo, "--exclude", "[")
        assert done.code == 2
        assert "[" in done.err


class TestPasswords:
    def test_none_at_all_ends_with_2(
        self, podlift: Run, repo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PODLIFT_PASSWORD")
        done = podlift("snapshots", "--repo", repo)
        assert done.code == 2
        assert "--password-file" in done.err
        assert "PODLIFT_PASSWORD" in done.err

    def test_the_file_wins_over_podlifts_variable_and_that_over_restics(
        self, podlift: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right, wrong = tmp_path / "right", tmp_path / "wrong"
        right.write_bytes(b"\xef\xbb\xbf" + PASSWORD.encode() + b"\r\n")  # as an editor leaves it
        wrong.write_text("wrong")
        command = ("snapshots", "--repo", repo)
        assert podlift(*command, "--password-file", wrong).code == 12
        monkeypatch.setenv("PODLIFT_PASSWORD", "wrong")
        assert podlift(*command, "--password-file", right).code == 0
        monkeypatch.setenv("RESTIC_PASSWORD", PASSWORD)
        assert podlift(*command).code == 12
        monkeypatch.delenv("PODLIFT_PASSWORD")
        assert podlift(*command).code == 0

    @pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\xfa"])
    def test_a_file_without_one_ends_with_2(
        self, podlift: Run, repo: Path, tmp_path: Path, content: bytes | None
    ) -> None:
        file = tmp_path / "password"
        if content is not None:
            file.write_bytes(content)
        done = podlift("snapshots", "--repo", repo, "--password-file", file)
        assert done.code == 2
        assert f"the password file {file}" in done.err

    def test_an_empty_one_makes_no_repository(
        self, podlift: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PODLIFT_PASSWORD", "")
        assert podlift("init", "--repo", tmp_path / "new").code == 2
        assert not (tmp_path / "new").exists()


class TestExitCodes:
    def test_10_where_no_repository_is(self, podlift: Run, tmp_path: Path) -> None:
        (tmp_path / "nothing").mkdir()
        for command in (("snapshots",), ("check",), ("ls", "latest"), ("backup", tmp_path)):
            done = podlift(*command, "--repo", tmp_path / "nothing")
            assert done.code == 10
            assert "podlift init" in done.err

    def test_10_where_not_even_a_directory_is(self, podlift: Run, tmp_path: Path) -> None:
        done = podlift("snapshots", "--repo", tmp_path / "nothing")
        assert done.code == 10
        assert str(tmp_path / "nothing") in done.err

    def test_11_where_somebody_else_works_alone(
        self, podlift: Run, repo: Path, source: Path
    ) -> None:
        repository = open_repository(LocalStorage(str(repo)), PASSWORD)
        with repository.locked(exclusive=True):
            done = podlift("backup", source, "--repo", repo, "--lock-wait", "1")
            assert podlift("check", "--repo", repo).code == 11
        assert done.code == 11
        assert "is locked: exclusive lock" in done.err
        assert "podlift unlock" in done.err
        assert not list(repo.glob("locks/*"))

    def test_12_with_the_wrong_password(
        self, podlift: Run, repo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PODLIFT_PASSWORD", "wrong")
        done = podlift("ls", "latest", "--repo", repo)
        assert done.code == 12
        assert "the password opens none of the 1 keys" in done.err

    def test_3_when_a_file_could_not_be_read(self, repo: Path, source: Path) -> None:
        os.chmod(source / "file", 0)
        if os.geteuid() == 0:
            os.chown(source / "file", 1000, 1000)
        arguments = ("backup", source, "--repo", repo, "--json")
        with started(*arguments, wrapper=WITHOUT_OVERRIDE) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 3, err
        assert "file: permission denied" in err
        assert json.loads(out)["errors"] == 1
        assert json.loads(out)["files"] == 1

    def test_1_when_there_is_nothing_to_back_up(
        self, podlift: Run, repo: Path, tmp_path: Path
    ) -> None:
        done = podlift("backup", tmp_path / "gone", "--repo", repo)
        assert done.code == 1
        assert "does not exist; check the path" in done.err
        assert not list(repo.glob("snapshots/*"))

    def test_1_when_init_finds_a_repository(self, podlift: Run, repo: Path) -> None:
        before = (repo / "config").read_bytes()
        done = podlift("init", "--repo", repo)
        assert done.code == 1
        assert "already; nothing was changed" in done.err
        assert (repo / "config").read_bytes() == before


class TestBackup:
    def test_json_tells_the_result_in_one_object(
        self, podlift: Run, repo: Path, source: Path, restic: Restic
    ) -> None:
        done = podlift("backup", source, "--repo", repo, "--json", "--tag", "k=v", "--host", "me")
        result = done.json
        assert done.code == 0
        assert done.err == ""
        assert list(result) == [
            "snapshot_id",
            "files",
            "bytes",
            "data_added",
            "data_added_packed",
            "data_read_back",
            "errors",
            "seconds",
        ]
        assert (result["files"], result["bytes"], result["errors"]) == (2, 7005, 0)
        assert result["data_added"] > 7005  # trees too
        assert 0 < result["data_added_packed"] < result["data_added"]
        assert result["data_read_back"] > 0
        assert 0 < result["seconds"] < 60
        listed = json.loads(restic.run(str(repo), "snapshots", "--json", password=PASSWORD).stdout)
        assert [s["id"] for s in listed] == [result["snapshot_id"]]
        assert (listed[0]["hostname"], listed[0]["tags"]) == ("me", ["k=v"])
        assert listed[0]["paths"] == [str(source)]
        restic.run(str(repo), "check", "--read-data", password=PASSWORD)

    @pytest.mark.parametrize("how", ["none", "all"])
    def test_what_was_stored_is_read_back_as_asked(
        self, podlift: Run, repo: Path, source: Path, how: str
    ) -> None:
        done = podlift("backup", source, "--repo", repo, "--json", "--verify-stored", how)
        packs = sum(path.stat().st_size for path in (repo / "data").rglob("*") if path.is_file())
        assert done.json["data_read_back"] == (packs if how == "all" else 0)

    def test_a_person_gets_a_sentence(self, podlift: Run, repo: Path, source: Path) -> None:
        done = podlift("-v", "backup", source, "--repo", repo)
        assert done.code == 0
        assert re.fullmatch(
            r"snapshot [0-9a-f]{8}: 2 files, 6\.8 KiB; added .*, stored as .*, in \d+\.\d s\n",
            done.out,
        )

    def test_the_parent_is_the_last_of_the_same_place_or_the_one_that_is_named(
        self, podlift: Run, repo: Path, source: Path, filled: str, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        common = ("--repo", repo, "--host", "host", "--json")

        def parent(*arguments: str | Path) -> str:
            made = podlift("backup", *arguments, *common).json["snapshot_id"]
            found = {s["id"]: s for s in podlift("snapshots", "--repo", repo, "--json").json}
            return str(found[made].get("parent", ""))

        assert parent(source, "--parent", "none") == ""
        assert parent(source, "--parent", filled[:10]) == filled
        assert parent(source) not in ("", filled)
        assert parent(tmp_path / "elsewhere") == ""
        assert podlift("backup", source, "--repo", repo, "--parent", "0000").code == 2

    def test_what_is_excluded_is_not_in_the_snapshot(
        self, podlift: Run, repo: Path, source: Path
    ) -> None:
        assert podlift("backup", source, "--repo", repo, "--exclude", "oth*").code == 0
        listed = podlift("ls", "latest", "--repo", repo).out.splitlines()
        assert sorted(listed) == ["/below", "/file", "/link"]

    def test_a_path_of_any_bytes_can_be_backed_up(
        self, podlift: Run, repo: Path, source: Path
    ) -> None:
        odd = Path(os.fsdecode(os.fsencode(source) + b"-\xff"))
        source.rename(odd)
        assert podlift("backup", odd, "--repo", repo).code == 0
        assert "source-\ufffd" in podlift("snapshots", "--repo", repo).out

    def test_a_user_without_a_home_works_without_a_cache(
        self, podlift: Run, repo: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
        assert podlift("backup", source, "--repo", repo).code == 0
        assert podlift("check", "--repo", repo).code == 0

    def test_s3_over_tls_with_an_authority_of_its_own(
        self,
        podlift: Run,
        s3_server: S3Server,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in s3_server.environment().items():
            monkeypatch.setenv(name, value)
        place = ("--repo", s3_server.repository(s3_server.make_bucket(), "by/hand"))
        trusting = (*place, "--cacert", s3_server.ca)
        assert podlift("init", *trusting).code == 0
        assert podlift("backup", source, *trusting).code == 0
        assert podlift("restore", "latest", *trusting, "--target", tmp_path / "out").code == 0
        assert list(differences(source, tmp_path / "out")) == []

    def test_s3_by_a_customer_key_and_not_without(
        self,
        podlift: Run,
        checking_server: S3Server,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in checking_server.environment().items():
            monkeypatch.setenv(name, value)
        place = ("--repo", checking_server.repository(checking_server.make_bucket(), "by/key"))
        place = (*place, "--cacert", checking_server.ca)
        key = tmp_path / "key"
        key.write_bytes(b"0123456789abcdef0123456789abcdef\n")
        keyed = (*place, "--customer-key", key)
        assert podlift("init", *keyed).code == 0
        assert podlift("backup", source, *keyed).code == 0
        assert podlift("check", *keyed, "--read-data").code == 0
        assert podlift("restore", "latest", *keyed, "--target", tmp_path / "out").code == 0
        assert list(differences(source, tmp_path / "out")) == []
        done = podlift("snapshots", *place)
        assert done.code == 1
        assert "Server Side Encryption" in done.err

    @pytest.mark.parametrize(
        ("content", "repo", "words"),
        [
            (b"short", "s3:https://h.example/b", "must hold 32 bytes, not base64 of them"),
            (None, "s3:https://h.example/b", "cannot be read: "),
            (
                b"k" * 32,
                "s3:http://h.example/b",
                "a customer key goes over TLS only; write https://",
            ),
        ],
    )
    def test_a_customer_key_that_cannot_serve_says_why(
        self, podlift: Run, tmp_path: Path, content: bytes | None, repo: str, words: str
    ) -> None:
        key = tmp_path / "key"
        if content is not None:
            key.write_bytes(content)
        done = podlift("snapshots", "--repo", repo, "--customer-key", key)
        assert done.code == 2
        assert words in done.err
        assert "kkkk" not in done.err

    def test_authorities_that_are_missing_are_named(self, podlift: Run, tmp_path: Path) -> None:
        place = ("--repo", "s3:https://127.0.0.1:1/bucket/prefix", "--cacert", tmp_path / "ca.pem")
        done = podlift("snapshots", *place)
        assert done.code in (1, 2)
        assert f"{tmp_path / 'ca.pem'} does not exist" in done.err

    def test_a_bucket_that_is_missing_is_named(
        self, podlift: Run, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in s3_server.environment().items():
            monkeypatch.setenv(name, value)
        repository = s3_server.repository("never-made", "x")
        done = podlift("snapshots", "--repo", repository, "--cacert", s3_server.ca)
        assert done.code == 10
        assert "never-made" in done.err
        assert "Traceback" not in done.err


class TestRestore:
    @pytest.mark.parametrize("wanted", ["latest", "whole", "beginning"])
    def test_a_snapshot_is_found_and_comes_back_identical(
        self, podlift: Run, repo: Path, source: Path, filled: str, tmp_path: Path, wanted: str
    ) -> None:
        name = {"latest": "latest", "whole": filled, "beginning": filled[:6]}[wanted]
        done = podlift("restore", name, "--repo", repo, "--target", tmp_path / "out")
        assert done.code == 0
        assert f"restored 2 files, 6.8 KiB of snapshot {filled[:8]}" in done.out
        assert list(differences(source, tmp_path / "out")) == []
        assert not list(repo.glob("locks/*"))

    def test_names_of_no_or_several_snapshots_end_with_2(
        self, podlift: Run, repo: Path, filled: str, tmp_path: Path
    ) -> None:
        (repo / "snapshots" / (filled[:8] + "0" * 56)).touch()
        for name, words in ((filled[:8], "names 2 snapshots"), ("zz", "names no snapshots")):
            done = podlift("restore", name, "--repo", repo, "--target", tmp_path / "out")
            assert done.code == 2
            assert words in done.err
            assert "podlift snapshots" in done.err
        assert not (tmp_path / "out").exists()

    def test_an_empty_repository_has_no_latest(
        self, podlift: Run, repo: Path, tmp_path: Path
    ) -> None:
        done = podlift("restore", "latest", "--repo", repo, "--target", tmp_path / "out")
        assert done.code == 2
        assert "holds no snapshots yet" in done.err

    def test_what_cannot_be_put_in_place_is_named_and_ends_with_3(
        self, podlift: Run, repo: Path, filled: str, tmp_path: Path
    ) -> None:
        (tmp_path / "out" / "file" / "in the way").mkdir(parents=True)
        done = podlift("restore", filled, "--repo", repo, "--target", tmp_path / "out")
        assert done.code == 3
        assert "file: a directory is in its place" in done.err
        assert "1 entries are not complete" in done.out
        assert (tmp_path / "out" / "below" / "other").read_bytes() == b"other"

    def test_a_target_that_is_a_file_ends_with_1(
        self, podlift: Run, repo: Path, filled: str, tmp_path: Path
    ) -> None:
        (tmp_path / "out").write_text("here")
        done = podlift("restore", filled, "--repo", repo, "--target", tmp_path / "out")
        assert done.code == 1
        assert str(tmp_path / "out") in done.err


class TestListing:
    def test_snapshots_for_people(self, podlift: Run, repo: Path, source: Path) -> None:
        for tag in ("note=[bold]x[/nothing]", "evil=\x1b[2Jx"):
            assert (
                podlift("backup", source, "--repo", repo, "--tag", tag, "--host", "h\x07").code == 0
            )
        out = podlift("snapshots", "--repo", repo).out
        assert "note=[bold]x[/nothing]" in out
        assert "evil=\\x1b[2Jx" in out
        assert "h\\x07" in out
        assert "6.8 KiB" in out
        assert len(out.splitlines()) == 3

    def test_snapshots_for_scripts_have_restics_fields(
        self, podlift: Run, repo: Path, filled: str, restic: Restic
    ) -> None:
        ours = podlift("snapshots", "--repo", repo, "--json").json
        theirs = json.loads(restic.run(str(repo), "snapshots", "--json", password=PASSWORD).stdout)
        assert [s["id"] for s in ours] == [filled]
        for key in theirs[0]:
            assert ours[0][key] == theirs[0][key]

    def test_ls_shows_every_entry_and_no_control_characters(
        self, podlift: Run, repo: Path, source: Path
    ) -> None:
        Path(os.fsdecode(bytes(source) + b"/evil-\x1b[31m\nname-\xff")).write_text("x")
        (source / "file").chmod(0o4755)
        os.utime(source / "below", ns=(0, 9_000_000_000 * 10**9))
        os.utime(source / "file", ns=(0, 0))
        podlift("backup", source, "--repo", repo)
        short = podlift("ls", "latest", "--repo", repo)
        assert short.out.splitlines() == [
            "/below",
            "/below/other",
            "/evil-\\x1b[31m\\nname-\\xff",
            "/file",
            "/link",
        ]
        lines = podlift("ls", "latest", "--long", "--repo", repo).out.splitlines()
        assert lines[0].startswith("drwx")
        assert re.search(r"^-rwsr-xr-x .* 7000 19(70-01-01|69-12-31) .* /file$", lines[3])
        assert lines[4].startswith("lrwxrwxrwx")
        assert lines[4].endswith("/link -> file")

    def test_a_reader_who_goes_away_is_no_error_worth_a_traceback(
        self, repo: Path, filled: str
    ) -> None:
        with started("ls", "latest", "--repo", repo) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            err = process.stderr.read()
            assert process.wait(60) == 1
        assert "Traceback" not in err
        assert "BrokenPipe" not in err


def test_python_m_agent_is_podlift() -> None:
    with started("--version") as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert __version__ in out


def test_the_console_script_is_installed() -> None:
    script = Path(os.sys.executable).parent / "podlift"  # type: ignore[attr-defined]
    done = subprocess.run([script, "ls"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
