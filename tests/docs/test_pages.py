"""Every command that README and docs/ show is run, or, where it needs a cluster, looked at."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from agent.cli import podlift
from tests.docs.pages import PAGES, PROJECT, Command, commands
from tests.repository.making import PASSWORD
from tests.support.restic import Restic, judges

HERE = {"podlift", "restic", "export"}
"""What runs on this machine."""

NOT_HERE = {"kubectl", "make", "helm", "velero"}
"""What acts on a cluster, or on this very project: its arguments are looked at."""


def runnable(page: Path) -> list[Command]:
    return [each for each in commands(page) if each.word in HERE]


RUN = [page for page in PAGES if runnable(page)]


class Reader:
    """Somebody who has what the pages suppose, in a folder: a volume, a repository with a backup."""

    def __init__(self, folder: Path, restic: Restic, page: Path) -> None:
        self.folder = folder
        repository = str(folder / "srv" / ("new" if page.name == "README.md" else "backup"))
        self.set = {
            "PODLIFT_PASSWORD": PASSWORD,
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_REPOSITORY": repository,
            "REPO": repository,
            "PATH": os.environ["PATH"],
        }
        programs = folder / "bin"
        programs.mkdir()
        (programs / "restic").symlink_to(restic.binary)
        self.environment = {
            **{name: value for name, value in os.environ.items() if "PASSWORD" not in name},
            **self.set,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        (folder / "srv" / "data" / "etc").mkdir(parents=True)
        (folder / "srv" / "data" / "etc" / "app.conf").write_text("colour = blue\n")
        (folder / "new-password").write_text("another one")
        (folder / "docs" / "benchmarks").mkdir(parents=True)
        (folder / "docs" / "deploy.md").write_text("how to deploy\n")
        (folder / "docs" / "demo.svg").touch()
        (folder / "srv" / "data" / "large").write_bytes(os.urandom(3 << 20))
        if page.name != "README.md":
            tags = ("backup=nightly-20261126", "ns=shop", "pod=shop-0", "volume=data")
            told = " ".join(f"--tag {tag}" for tag in tags)
            backup = f"podlift backup srv/data --repo {repository} {told}"
            done = self.run(f"podlift init --repo {repository}\n{backup}")
            assert done.returncode == 0, done.stderr

    def as_here(self, text: str) -> str:
        """Return a line with what a reader fills in: places, and what is theirs is set already."""
        if (given := re.fullmatch(r"export (\w+)=(.*)", text)) and given[1] in self.set:
            keeps = given[2].startswith('"$(') or given[2].startswith('"$RESTIC')
            return text if keeps else ":"
        if text.startswith("export AWS_"):
            return ":"
        text = text.replace("/srv/", f"{self.folder}/srv/").replace("/srv/backup", "/srv/new")
        return re.sub(r"(?<![$\w\"])SNAPSHOT\b(?!=)", "latest", text)

    def run(self, script: str) -> "subprocess.CompletedProcess[str]":
        """Run lines in one shell that ends at the first that fails."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
def test_every_command_of_the_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    restic = judges(tmp_path / "homes")[-1]
    reader = Reader(tmp_path, restic, page)
    lines = []
    for command in runnable(page):
        lines += [f"echo '{command.page}:{command.line}'", reader.as_here(command.text)]
    done = reader.run("\n".join(lines))
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    for restored in (tmp_path / "srv").glob("restored/**/app.conf"):
        assert restored.read_text() == "colour = blue\n"
    assert "srv/restored" not in "".join(lines) or (tmp_path / "srv" / "restored").exists()
    tried = tmp_path / "podlift-restored"
    assert tried.exists() == (page.name == "README.md")
    assert not tried.exists() or sorted(path.name for path in tried.iterdir()) == [
        "benchmarks",
        "deploy.md",
    ]


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    reader = Reader(tmp_path, judges(tmp_path / "homes")[-1], PROJECT / "README.md")
    assert reader.run("podlift snapshots --repo srv/nowhere\ntrue").returncode == 10


FILES = sorted({each for page in PAGES for each in commands(page) if each.word in NOT_HERE})


@pytest.mark.parametrize("command", FILES, ids=[f"{each.page}:{each.line}" for each in FILES])
def test_what_acts_elsewhere_names_what_there_is(command: Command) -> None:
    words = shlex.split(command.text, comments=True)
    if words[0] == "make":
        target = next(word for word in words[1:] if "=" not in word)
        assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(), re.MULTILINE)
        return
    for word in words:
        if word.startswith(("deploy", "docs", "./")):
            assert (PROJECT / word).exists(), f"{word} is not there"
    if words[0] == "kubectl" and "-l" in words:
        key, _, value = words[words.index("-l") + 1].partition("=")
        made = [*yaml.safe_load_all((PROJECT / "deploy" / "daemonset.yaml").read_text())]
        pods = next(each for each in made if each["kind"] == "DaemonSet")["spec"]["template"]
        assert pods["metadata"]["labels"][key] == value


INLINE = re.compile(r"`podlift ((?:[a-z]+ ?)+)((?:--?[a-z-]+ ?[^`]*)?)`")

ABSENT = {"mount"}
"""What a page says that there is not."""


def test_commands_in_sentences_have_the_options_that_are_named() -> None:
    known = 0
    for page in PAGES:
        for words, rest in INLINE.findall(page.read_text()):
            if words in ABSENT:
                continue
            command: click.Command | None = podlift
            for word in words.split():
                if isinstance(command, click.Group):
                    command = command.get_command(click.Context(command), word)
                    assert command is not None, f"{page.name}: podlift {words}"
            assert command is not None
            options = {"--help", *(name for each in command.params for name in each.opts)}
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in options, f"{page.name}: podlift {words}{rest}"
                known += 1
    assert known > 5


LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target
