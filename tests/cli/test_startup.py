"""A command imports no client of a service that it does not talk to: start-up is felt each time."""

import os
import subprocess
import sys
from pathlib import Path

import click

from agent.allocator import COLLECT_OBJECTS
from agent.cli import podlift

SERVICES = ("aiohttp", "boto3", "botocore", "kubernetes")

RUN = f"""
import sys
from agent.cli import main
try:
    main()
finally:
    print("imported:", *({SERVICES!r} & sys.modules.keys()), file=sys.stderr)
""".replace(repr(SERVICES), repr(set(SERVICES)))


SHOW = """
import sys
from agent.cli import main
code = main()
print(code, sorted(name for name in sys.modules if name.startswith("agent.commands.")))
"""


OF_A_REPOSITORY = """
import sys; print("imported:", [m for m in sys.modules if m.startswith(("agent.repository", "agent.transfer"))])
""".strip()

AT_THE_END = """
import atexit, gc
from agent.cli import main
atexit.register(lambda: print("at the end:", gc.get_threshold()[0], gc.get_freeze_count() > 0))
main(["--version"])
"""


def imported_by(*arguments: str) -> str:
    """Run podlift in a process of its own; return which services' clients it imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        env={**os.environ, "PODLIFT_PASSWORD": "secret"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.rpartition("imported:")[2].strip()


def test_help_imports_no_client() -> None:
    assert imported_by("--help") == ""


def test_what_asks_for_no_command_imports_nothing_of_a_repository() -> None:
    code = f"from agent.cli import main; main(['--version']); {OF_A_REPOSITORY}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: []\n")


def test_nobody_looks_for_cycles_at_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=True
    )
    assert f"at the end: {COLLECT_OBJECTS} True" in done.stdout


def test_a_local_backup_imports_no_client(tmp_path: Path) -> None:
    repo = ("--repo", str(tmp_path / "repo"), "--cache-dir", str(tmp_path / "cache"))
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_bytes(b"content")
    imported_by("init", *repo)
    assert imported_by("backup", *repo, str(volume)) == ""


def test_every_command_is_where_the_list_says() -> None:
    context = click.Context(podlift)
    for name in podlift.list_commands(context):
        command = podlift.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
    assert podlift.get_command(context, "bakcup") is None


def test_a_command_does_not_import_the_others(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SHOW,
            *("init", "--repo", str(tmp_path)),
        ],
        env={**os.environ, "PODLIFT_PASSWORD": "secret"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("0 ['agent.commands.backups', 'agent.commands.exits']\n")


def test_an_agent_imports_what_it_needs_of_its_clients_and_nothing_that_draws() -> None:
    found = modules_after("import agent.cli, agent.cluster.run, agent.storage.s3")
    ours = {name.split(".")[2] for name in found if name.startswith("kubernetes.aio.")}
    assert ours == {"client", "config", "utils"}
    assert [n for n in found if n.startswith("kubernetes.") and "kubernetes.aio" not in n] == []
    assert {"botocore", "aiohttp"} <= found
    assert not {"boto3", "rich", "requests"} & found


def test_the_rest_of_the_kubernetes_package_can_still_be_imported() -> None:
    found = modules_after(
        "import agent.cluster.sdk", "from kubernetes import client", "client.V1Pod"
    )
    assert "kubernetes.client.models.v1_pod" in found


def modules_after(*statements: str) -> set[str]:
    """Run statements in a process of their own; return the modules that it then has."""
    show = "import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", "; ".join([*statements, show])],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())
