"""agent and demo: the node agent, and a stage on which it shows itself."""

import asyncio
import functools
import logging

import click

from agent.access import rates_of
from agent.budget import Budgets
from agent.commands.exits import DONE, FAILED, exit_code
from agent.config import CacheDir, agent_settings
from agent.errors import PodliftError, UsageError
from agent.logs import write_log_as
from agent.terminal import say_more
from agent.volume.descriptors import raise_descriptor_limit

LOG = logging.getLogger(__name__)


@click.command()
@click.option("--node-name", help="This node; its pods' volumes are ours. [NODE_NAME]")
@click.option("--namespace", help="Velero's namespace. [VELERO_NAMESPACE; velero]")
@click.option("--pod-name", help="This pod, for the claim's owner. [POD_NAME]")
@click.option("--pod-uid", help="This pod's UID. [POD_UID]")
@click.option("--kubeconfig", help="Instead of the pod's service account. [KUBECONFIG]")
@click.option("--host-pods", help="Where the kubelet's pods directory is. [/host_pods]")
@click.option("--cache-dir", help="Where to keep copies of indexes. [/cache]")
@click.option("--cache-mib", help="What all of them together may take. [2048]")
@click.option("--metrics-address", help="ADDR:PORT of /metrics, /healthz, /readyz. [:8085]")
@click.option(
    "--uploader-types",
    help="Which PVBs and PVRs are taken: restic (includes the empty type), kopia, or both by comma."
    " Those of type kopia are then stored in restic's format too, and only podlift can restore"
    " them: Velero's own node-agent would look for them in kopia's format. [restic]",
)
@click.option(
    "--other-uploader-types",
    help="PVBs and PVRs of a type that is not taken: fail at once with a message, or ignore. [fail]",
)
@click.option(
    "--restores",
    help="PVRs: serve, or ignore, which takes no right to see them; Velero then waits for somebody"
    " else in vain. [serve]",
)
@click.option(
    "--concurrency",
    help="Volumes backed up or restored at a time, unless loadConcurrency in the ConfigMap says"
    " otherwise. [1]",
)
@click.option(
    "--node-agent-configmap",
    help="The ConfigMap with loadConcurrency, as Velero's node-agent has it; followed while the"
    " agent runs. [node-agent-config]",
)
@click.option("--upload-workers", help="Packs sent at a time, for all volumes together. [4]")
@click.option("--limit-upload", metavar="MIB", help="MiB/s sent to storages at most, all in all.")
@click.option("--limit-download", metavar="MIB", help="MiB/s fetched from storages at most.")
@click.option("--limit-read", metavar="MIB", help="MiB/s read from volumes at most.")
@click.option(
    "--compression", help="fastest, default, or better and three times as slow. [default]"
)
@click.option(
    "--verify-stored",
    help="Which stored packs are read back before anything relies on them: none, sample, or all,"
    " which doubles the traffic. [sample]",
)
@click.option("--deadline-seconds", help="How long one volume may take before it fails. [172800]")
@click.option("--grace-seconds", help="From SIGTERM to the end. [25]")
@click.option("--startup-seconds", help="How long the API server may be away at the start. [60]")
@click.option(
    "--credentials-file",
    help="AWS credentials for locations without their own. [AWS_SHARED_CREDENTIALS_FILE]",
)
@click.option(
    "--log-format",
    help="Lines for people (text), or JSON with time, level, logger, message, kind and name. [text]",
)
def agent(**options: str | None) -> int:
    """Serve this node's PodVolumeBackups and -Restores, in the place of Velero's node-agent.

    Runs until SIGTERM. Every option can also be given by the environment: the variable in
    capitals in brackets, else PODLIFT_ and the option's name (PODLIFT_HOST_PODS). What stands in
    brackets in small letters or numbers is the default.
    """
    from agent.cluster.assignment import Movers  # the Kubernetes client costs 35 MiB and 0.3 s
    from agent.cluster.mover import Means, move
    from agent.cluster.restorer import give_back
    from agent.cluster.run import run_agent

    settings = agent_settings(options)
    write_log_as(settings.log_format)
    say_more(logging.INFO)
    raise_descriptor_limit()
    try:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the cache directory {settings.cache_dir} cannot be made: {error.strerror};"
            " choose another --cache-dir (or PODLIFT_CACHE_DIR)"
        ) from None
    cache = CacheDir(settings.cache_dir, settings.cache_mib)
    means = Means(cache, Budgets(rates_of(settings.limits), settings.upload_workers))
    movers = Movers(
        back_up=functools.partial(move, means=means),
        give_back=functools.partial(give_back, means=means),
    )
    try:
        return asyncio.run(run_agent(settings, movers))
    except PodliftError as error:
        if settings.log_format == "text":
            raise
        LOG.critical("the agent ends: %s", error)
        return exit_code(error)


@click.command()
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
    return DONE if run(megabytes, keep) else FAILED
