"""How a command reaches its repository, and how it is stopped.

The options that every command on a repository has, in one place: the repository, its password,
its cache, and what its S3 service wants to be trusted and told.
"""

import contextlib
import functools
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import click

from agent.budget import Budgets, Rate, Rates
from agent.cancel import CancelToken
from agent.config import CACHE_MIB, CacheDir, Limits, default_cache_dir, repository_password
from agent.errors import UsageError
from agent.repository.locking import HeldLock
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.storage.address import parse_repository
from agent.storage.contract import Storage
from agent.storage.keeping import AS_IT_IS, Keeping, customer_key_in
from agent.storage.opening import open_s3, open_storage
from agent.storage.retry import RetryPolicy
from agent.storage.settings import S3Settings
from agent.transfer.content import WRITERS

FIRST_CONTACT_SECONDS = 20.0
"""How long a command looks for a storage that has never answered; later faults get 15 minutes."""


def rates_of(limits: Limits) -> Rates:
    """Return the rates that hold a process to its limits."""
    return Rates(*map(_rate, (limits.upload, limits.download, limits.read)))


def _rate(mib: int | None) -> Rate:
    return Rate(None if mib is None else mib << 20)


class Service(NamedTuple):
    """What reaching an S3 service takes beside credentials: authorities, and a customer key (SSE-C)."""

    ca: str = ""
    customer_key: Path | None = None


class Access:
    """How a command reaches its repository, and what holds for all that it moves."""

    def __init__(
        self,
        repo: str,
        password_file: Path | None,
        cache: CacheDir | None,
        service: Service,
        limits: Limits,
    ) -> None:
        self.budgets = Budgets(rates_of(limits))
        self._repo = repo
        self._password_file = password_file
        self._cache = cache
        self._service = service

    @property
    def named(self) -> bool:
        """Tell whether a repository was named at all."""
        return bool(self._repo)

    @property
    def described(self) -> bool:
        """Tell whether anything was named that a location has of its own."""
        return self._password_file is not None or any(self._service)

    @property
    def cache(self) -> CacheDir | None:
        """Return where caches go."""
        return self._cache

    @contextlib.contextmanager
    def storage(self, *, create: bool = False) -> Iterator[Storage]:
        """Open the storage for a scope."""
        key = self._service.customer_key
        storage = open_storage(
            parse_repository(self._repo),
            create=create,
            verify=self._service.ca or True,
            keeping=Keeping(customer_key=customer_key_in(key)) if key else AS_IT_IS,
            workers=WRITERS,
            policy=RetryPolicy(first_contact_seconds=FIRST_CONTACT_SECONDS),
            rates=self.budgets.rates,
        )
        with contextlib.closing(storage):
            yield storage

    @contextlib.contextmanager
    def repository(self, cancel: CancelToken) -> Iterator[Repository]:
        """Open the repository for a scope."""
        with self.storage() as storage:
            yield open_repository(storage, self.password(), cache=self._cache, cancel=cancel)

    @contextlib.contextmanager
    def reading(
        self,
        cancel: CancelToken,
        *,
        no_lock: bool = False,
        begun: bool = False,
        lock_wait_seconds: float = 0,
    ) -> Iterator[Repository]:
        """Open the repository for a scope in which nobody may prune it, unless ``no_lock``.

        With ``begun`` the lock settles when chunks are planned, and trees are read meanwhile.
        """
        with contextlib.ExitStack() as scope:
            repository = scope.enter_context(self.repository(cancel))
            if not no_lock:
                lock = repository.locked(
                    exclusive=False, wait_seconds=lock_wait_seconds, cancel=cancel, begun=begun
                )
                scope.enter_context(lock)
            yield repository

    def password(self) -> str:
        """Return the password; raise ``UsageError`` if nothing gives one."""
        if self._password_file is not None:
            return _password_in(self._password_file)
        password = repository_password()
        if password is None:
            raise UsageError(
                "no password: name a file with --password-file, or set PODLIFT_PASSWORD"
            )
        return password


def _password_in(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the password file {path} cannot be read: {error}") from None
    if not password:
        raise UsageError(f"the password file {path} is empty")
    return password


def person_cache_dir() -> Path | None:
    """Return where a person's caches go; a user id without a home works without one."""
    try:
        return default_cache_dir()
    except RuntimeError:
        return None


def repository_options(command: Callable[..., Any], *, required: bool = True) -> Callable[..., Any]:
    """Add the options that lead to a repository; the command gets ``access``."""

    @click.option(
        "--repo", required=required, metavar="REPO", help="The repository: s3:… or a directory."
    )
    @click.option(
        "--password-file",
        type=click.Path(path_type=Path),
        help="File that holds the repository's password, instead of PODLIFT_PASSWORD.",
    )
    @click.option(
        "--cache-dir",
        type=click.Path(path_type=Path, readable=False),
        default=person_cache_dir,
        help="Where to keep a copy of the index; may be deleted at any time. [~/.cache/podlift]",
    )
    @click.option(
        "--cache-mib",
        type=click.IntRange(min=1),
        default=CACHE_MIB,
        help=f"What the copies of all repositories may take together. [{CACHE_MIB}]",
    )
    @_service_options
    @_limit_option("upload", "MiB/s sent to the repository at most.")
    @_limit_option("download", "MiB/s fetched from the repository at most.")
    @functools.wraps(command)
    def wrapped(repo: str | None, password_file: Path | None, service: Service, **rest: Any) -> Any:
        root, limit_mib = rest.pop("cache_dir"), rest.pop("cache_mib")
        cache = CacheDir(root, limit_mib) if root is not None else None
        given = {name: rest.pop(f"limit_{name}", None) for name in ("upload", "download", "read")}
        access = Access(repo or "", password_file, cache, service, Limits(**given))
        return command(access=access, **rest)

    return wrapped


def _service_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what an S3 service wants to be trusted and told; the command gets ``service``."""

    @click.option(
        "--cacert", default="", metavar="FILE", help="PEM file of authorities to trust for S3."
    )
    @click.option(
        "--customer-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File with the 32 bytes by which S3 encrypts and decrypts for this repository (SSE-C).",
    )
    @functools.wraps(command)
    def wrapped(cacert: str, customer_key: Path | None, **rest: Any) -> Any:
        return command(service=Service(cacert, customer_key), **rest)

    return wrapped


def _limit_option(what: str, says: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--limit-{what}", type=click.IntRange(min=1), metavar="MIB", help=says)


limit_read_option = _limit_option("read", "MiB/s read from PATH at most.")


credentials_file_option = click.option(
    "--credentials-file",
    help="AWS credentials for a location without its own. [AWS_SHARED_CREDENTIALS_FILE]",
)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add how the cluster is reached."""
    for option in (
        click.option(
            "--kubeconfig",
            help="How to reach the cluster. [KUBECONFIG; in a pod its service account, else"
            " ~/.kube/config]",
        ),
        click.option("--namespace", help="Velero's namespace. [VELERO_NAMESPACE; velero]"),
    ):
        command = option(command)
    return command


def open_location(settings: S3Settings, rates: Rates | None = None) -> Storage:
    """Return a place in a location's bucket, with a command's patience with one that never answered."""
    return open_s3(settings, RetryPolicy(first_contact_seconds=FIRST_CONTACT_SECONDS), rates)


_DURATION = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(_ctx: click.Context, _param: click.Parameter, text: str) -> float:
    """Return the seconds of a time such as ``72h``; for use as a callback."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text[:80]!r} is not a time such as 72h (s, m, h or d)")
    return float(int(match[1]) * _UNIT_SECONDS[match[2]])


def _seconds_or_duration(ctx: click.Context, param: click.Parameter, text: str) -> float:
    return duration(ctx, param, f"{text}s" if text.isdigit() else text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


no_lock_option = click.option(
    "--no-lock",
    is_flag=True,
    help="Take no lock, for storage that cannot be written; nobody may prune meanwhile.",
)


lock_wait_option = click.option(
    "--lock-wait",
    "lock_wait_seconds",
    callback=_seconds_or_duration,
    default="0",
    metavar="TIME",
    help="Wait this long (seconds, or a time such as 10m) for others' locks; one that is watched for"
    " half an hour without a sign of life is removed. [0]",
)


dry_run_option = click.option(
    "--dry-run", "-n", is_flag=True, help="Say what would be done, and change nothing."
)


@contextlib.contextmanager
def stoppable() -> Iterator[CancelToken]:
    """Turn SIGINT and SIGTERM into one cancel token; a second one ends the process at once."""
    token = CancelToken()

    def stop(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        threading.Thread(target=token.cancel, args=(f"interrupted by {name}",)).start()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield token
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Alone(NamedTuple):
    """A repository that nobody else uses meanwhile, its lock, and the stop request."""

    repository: Repository
    lock: HeldLock
    cancel: CancelToken


@contextlib.contextmanager
def alone(access: Access, lock_wait_seconds: float) -> Iterator[Alone]:
    """Open the repository for a scope, under an exclusive lock."""
    with (
        stoppable() as cancel,
        access.repository(cancel) as repository,
        repository.locked(exclusive=True, wait_seconds=lock_wait_seconds, cancel=cancel) as lock,
    ):
        yield Alone(repository, lock, cancel)


def tag_pairs(tags: Sequence[str]) -> dict[str, str]:
    """Return the pairs of ``--tag K=V`` options; raise ``UsageError``."""
    pairs: dict[str, str] = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not key or not equals or "," in tag:
            raise UsageError(f"--tag {tag!r} is not KEY=VALUE without a comma")
        if key in pairs:
            raise UsageError(f"--tag {key}=… is given twice; a key has one value")
        pairs[key] = value
    return pairs
