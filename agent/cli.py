"""The command line.

Every command ends in one of these, and scripts may rely on it: 0 done, 1 failed, 2 usage, 3 done
but some files could not be read, 10 no repository, 11 locked, 12 wrong password, 130 interrupted.
"""

import asyncio
import functools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from agent import __version__
from agent.access import Access, repository_options, stoppable, tag_pairs
from agent.allocator import limit_arenas
from agent.cancel import CancelToken
from agent.config import agent_settings
from agent.entry import Kind
from agent.errors import (
    BucketMissing,
    Canceled,
    NoRepository,
    PodliftError,
    RepositoryLocked,
    UsageError,
    WrongPassword,
)
from agent.monitor import Monitor
from agent.repository.check import check as check_repository
from agent.repository.opening import create_repository
from agent.repository.repository import Repository
from agent.terminal import (
    drop_output,
    entry_line,
    escape_missing_letters,
    is_output_error,
    name_text,
    plain_text,
    problem_lines,
    progress,
    result_json,
    result_line,
    size_text,
    snapshot_facts,
    snapshot_table,
)
from agent.transfer.job import ChooseParent, Request, run_backup
from agent.transfer.parent import by_paths
from agent.transfer.restore import restore as restore_tree
from agent.volume.descriptors import raise_descriptor_limit

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130

_EXIT_CODES: dict[type[PodliftError], int] = {
    UsageError: EXIT_USAGE,
    NoRepository: 10,
    BucketMissing: 10,
    RepositoryLocked: 11,
    WrongPassword: 12,
    Canceled: EXIT_INTERRUPTED,
}

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # restic unlock sends it to the holder of a lock
    limit_arenas()
    escape_missing_letters()
    try:
        code = int(podlift.main(args=arguments, prog_name="podlift", standalone_mode=False) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PodliftError as error:
        click.echo(f"podlift: {plain_text(str(error))}", err=True)
        return next(
            (code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), EXIT_FAILED
        )
    except BrokenPipeError:
        drop_output()
        return EXIT_FAILED
    except OSError as error:
        if not is_output_error(error):
            raise
        drop_output()
        click.echo(f"podlift: the output cannot be written: {error.strerror or error}", err=True)
        return EXIT_FAILED


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
def podlift(verbose: bool) -> None:
    """Back up directories and Kubernetes volumes into restic repositories.

    In a cluster, `podlift agent` runs on every node and takes the place of Velero's node-agent.
    By hand, the other commands work on the same repositories. `podlift demo` shows all of it on
    this machine.

    REPO is a directory, or s3:https://HOST[:PORT]/BUCKET[/PREFIX] as restic writes it; S3
    credentials come from the usual AWS variables, files and roles. The password comes from
    --password-file, PODLIFT_PASSWORD or RESTIC_PASSWORD.

    \b
    Exit codes: 0 done, 1 failed, 2 usage, 3 done but some files could not be read,
    10 no repository, 11 locked, 12 wrong password, 130 interrupted.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    _say_more(logging.INFO if verbose else logging.WARNING)


def _say_more(level: int) -> None:
    """Set the level of our own log; the libraries' stays at warnings."""
    logging.getLogger("agent").setLevel(level)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


# -- commands ------------------------------------------------------------------------------------


@podlift.command()
@repository_options
def init(access: Access) -> int:
    """Make a new, empty repository (restic format 2)."""
    password = access.password()
    with stoppable() as cancel, access.storage(create=True) as storage:
        create_repository(storage, password, cancel=cancel)
        click.echo(f"made a repository at {storage.place}; keep its password, nothing replaces it")
    return 0


@podlift.command()
@click.argument("path", type=click.Path(path_type=Path))
@repository_options
@click.option(
    "--tag", "tags", multiple=True, metavar="K=V", help="Tag of the snapshot; repeatable."
)
@click.option(
    "--exclude",
    "excludes",
    multiple=True,
    metavar="GLOB",
    help="Leave out what matches; repeatable. Matches at any depth, or from PATH if it begins with"
    " /; a last / means directories only; ** crosses directories.",
)
@click.option(
    "--host", default=socket.gethostname, help="Host name of the snapshot. [this machine's]"
)
@click.option(
    "--parent",
    default="auto",
    metavar="auto|none|ID",
    help="Earlier snapshot whose unchanged files need not be read. [auto: the newest of this host"
    " and PATH]",
)
@click.option(
    "--lock-wait",
    "lock_wait_seconds",
    type=click.IntRange(min=0),
    default=0,
    metavar="SECONDS",
    help="Wait this long for others' locks. [0]",
)
@json_option
def backup(access: Access, path: Path, as_json: bool, **options: Any) -> int:
    """Back up the content of the directory PATH.

    The snapshot's root is PATH's content, as `restic backup .` in PATH makes it. Files that
    cannot be read are named and left out, and the exit code is 3. With --json, one object on
    stdout tells the result.

    \b
    podlift backup /srv/data --repo s3:https://s3.example.com/bucket/prefix --exclude '*.tmp'
    """
    raise_descriptor_limit()
    tags = tag_pairs(options["tags"])
    monitor = Monitor()
    with stoppable() as cancel, access.repository(cancel) as repository:
        host, reported = options["host"], os.fsencode(path.absolute()).decode("utf-8", "replace")
        request = Request(
            path=str(path),
            reported_paths=(reported,),
            host=host,
            tags=tags,
            choose_parent=_parent_choice(repository, options["parent"], (host, reported), cancel),
            excludes=options["excludes"],
            lock_wait_seconds=options["lock_wait_seconds"],
        )
        with progress(monitor, "backup", quiet=as_json):
            result = run_backup(repository, request, monitor, cancel)
    problem_lines(monitor.problems, result.counters.problems)
    click.echo(result_json(result) if as_json else result_line(result))
    return EXIT_PARTIAL if result.counters.problems else 0


def _parent_choice(
    repository: Repository, wanted: str, origin: tuple[str, str], cancel: CancelToken
) -> ChooseParent:
    """Return how the parent is found; ``origin`` is the host and the path of the new snapshot."""
    if wanted == "none":
        return lambda snapshots, now_ns: None
    if wanted == "auto":
        host, path = origin
        return lambda snapshots, now_ns: by_paths(snapshots, host, [path], now_ns)
    chosen = repository.snapshot(wanted, cancel)
    return lambda snapshots, now_ns: chosen


@podlift.command()
@click.argument("snapshot")
@repository_options
@click.option(
    "--target",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to restore into; made if missing. What else is in there stays.",
)
def restore(access: Access, snapshot: str, target: Path) -> int:
    """Restore SNAPSHOT (an id, the beginning of one, or `latest`) into a directory.

    Owners, devices and other people's attributes need root. Entries that cannot be restored in
    full are named, and the exit code is 3.
    """
    raise_descriptor_limit()
    monitor = Monitor()
    with (
        stoppable() as cancel,
        access.repository(cancel) as repository,
        repository.locked(exclusive=False, cancel=cancel),
    ):
        wanted = repository.snapshot(snapshot, cancel)
        with progress(monitor, "restore"):
            restore_tree(repository.reading(cancel), wanted.tree, target, monitor, cancel)
    now = monitor.counters
    problem_lines(monitor.problems, now.problems)
    click.echo(
        f"restored {now.files} files, {size_text(now.bytes_done)} of snapshot {wanted.id[:8]}"
        f" to {target}" + (f"; {now.problems} entries are not complete" if now.problems else "")
    )
    return EXIT_PARTIAL if now.problems else 0


@podlift.command()
@repository_options
@json_option
def snapshots(access: Access, as_json: bool) -> int:
    """List the snapshots, oldest first; --json gives the fields that restic gives."""
    with stoppable() as cancel, access.repository(cancel) as repository:
        found = repository.snapshots(cancel)
    if as_json:
        click.echo(json.dumps([snapshot_facts(snapshot) for snapshot in found]))
    else:
        snapshot_table(found)
    return 0


@podlift.command()
@click.argument("snapshot")
@repository_options
@click.option("-l", "--long", "long", is_flag=True, help="Show mode, owner, size and time.")
def ls(access: Access, snapshot: str, long: bool) -> int:
    """List the files of SNAPSHOT (an id, the beginning of one, or `latest`)."""
    with stoppable() as cancel, access.repository(cancel) as repository:
        wanted = repository.snapshot(snapshot, cancel)
        reader = repository.reading(cancel)
        stack = [(b"", wanted.tree)]
        while stack:
            path, tree = stack.pop()
            cancel.check()
            below = []
            for entry in reader.load_tree(tree):
                name = path + b"/" + entry.name
                click.echo(entry_line(name, entry) if long else name_text(name))
                if entry.kind is Kind.DIRECTORY and entry.subtree is not None:
                    below.append((name, entry.subtree))
            stack += reversed(below)
    return 0


@podlift.command()
@repository_options
@click.option("--read-data", is_flag=True, help="Also read and verify every byte of every pack.")
def check(access: Access, read_data: bool) -> int:
    """Verify that everything the snapshots need is there and intact.

    Prints a line for each finding. Damage ends with exit code 1; hints cost nothing but space.
    """
    damage = hints = 0
    with (
        stoppable() as cancel,
        access.repository(cancel) as repository,
        repository.locked(exclusive=False, cancel=cancel),
    ):
        for finding in check_repository(repository, read_data=read_data, cancel=cancel):
            damage += finding.damage
            hints += not finding.damage
            click.echo(plain_text(f"{'damage' if finding.damage else 'hint'}: {finding.message}"))
        place = repository.place
    scope = "structure and every byte" if read_data else "structure (--read-data reads it all)"
    if damage:
        click.echo(f"{place} is DAMAGED: {damage} findings; checked: {scope}")
        return EXIT_FAILED
    click.echo(f"{place} is in order; checked: {scope}" + (f"; {hints} hints" if hints else ""))
    return 0


@podlift.command()
@click.option("--node-name", help="This node; PVBs with this spec.node are ours. [NODE_NAME]")
@click.option("--namespace", help="Velero's namespace. [VELERO_NAMESPACE; velero]")
@click.option("--pod-name", help="This pod, for the claim's owner. [POD_NAME]")
@click.option("--pod-uid", help="This pod's UID. [POD_UID]")
@click.option("--kubeconfig", help="Instead of the pod's service account. [KUBECONFIG]")
@click.option("--host-pods", help="Where the kubelet's pods directory is. [/host_pods]")
@click.option("--cache-dir", help="Where to keep copies of indexes. [/cache]")
@click.option("--metrics-address", help="ADDR:PORT of /metrics, /healthz, /readyz. [:8085]")
@click.option(
    "--uploader-types",
    help="Which PVBs are taken: restic (includes the empty type), kopia, or both by comma. PVBs of"
    " type kopia are then stored in restic's format too, and only podlift can restore them:"
    " Velero's own node-agent would look for them in kopia's format. [restic]",
)
@click.option(
    "--other-uploader-types",
    help="PVBs of a type that is not taken: fail at once with a message, or ignore. [fail]",
)
@click.option("--concurrency", help="Volumes backed up at a time. [1]")
@click.option("--upload-workers", help="Connections a volume uploads with. [4]")
@click.option("--grace-seconds", help="From SIGTERM to the end. [25]")
@click.option("--startup-seconds", help="How long the API server may be away at the start. [60]")
@click.option(
    "--credentials-file",
    help="AWS credentials for locations without their own. [AWS_SHARED_CREDENTIALS_FILE]",
)
def agent(**options: str | None) -> int:
    """Serve the PodVolumeBackups of this node, in the place of Velero's node-agent.

    Runs until SIGTERM. Every option can also be given by the environment: the variable in
    capitals in brackets, else PODLIFT_ and the option's name (PODLIFT_HOST_PODS). What stands in
    brackets in small letters or numbers is the default.
    """
    from agent.cluster.mover import move  # the Kubernetes client costs 35 MiB and 0.3 s
    from agent.cluster.run import run_agent

    settings = agent_settings(options)
    _say_more(logging.INFO)
    raise_descriptor_limit()
    try:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the cache directory {settings.cache_dir} cannot be made: {error.strerror};"
            " choose another --cache-dir (or PODLIFT_CACHE_DIR)"
        ) from None
    return asyncio.run(run_agent(settings, functools.partial(move, cache=settings.cache_dir)))


@podlift.command()
@click.option(
    "--megabytes",
    type=click.IntRange(min=30, max=1 << 20),
    default=510,
    help="Size of the sample volume in MiB. [510]",
)
@click.option(
    "--keep",
    is_flag=True,
    help="Keep the demo's folder: volume, repository, restored files and logs.",
)
def demo(megabytes: int, keep: bool) -> int:
    """Show the main job on this machine, on stand-ins for S3 and the API server.

    Makes a sample volume in a new folder, runs the real agent on it, backs it up twice and
    restores it, and says whether all of it held. Needs `pip install 'podlift[demo]'`.
    """
    try:
        from agent.demo.story import run
    except ImportError as error:
        raise UsageError(f"{error}; the demo needs: pip install 'podlift[demo]'") from None
    return 0 if run(megabytes, keep) else EXIT_FAILED
