"""``python -m agent.demo.apiserver``: the stand-in as a process of its own.

It prints one line when it is ready (the kubeconfig is written then) and ends on SIGTERM or
SIGINT. Objects live in memory only.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from agent.demo.apiserver.server import Server


async def serve(directory: Path, port: int, *, status_subresource: bool) -> None:
    """Run a stand-in until a signal asks it to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(directory, port, status_subresource=status_subresource)
    await server.start()
    sys.stdout.write(f"ready: {server.url} {server.kubeconfig}\n")
    sys.stdout.flush()
    await stop.wait()
    await server.stop()


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agent.demo.apiserver",
        description="A stand-in for kube-apiserver on loopback that serves Velero's resources.",
    )
    parser.add_argument("--dir", type=Path, required=True, help="receives kubeconfig and ca.crt")
    parser.add_argument("--port", type=int, default=0, help="to listen on (default: a free one)")
    parser.add_argument(
        "--status-subresource", action="store_true", help="serve /status of Velero's resources"
    )
    options = parser.parse_args(arguments)
    options.dir.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(serve(options.dir, options.port, status_subresource=options.status_subresource))
    except OSError as error:
        sys.stderr.write(f"cannot listen on port {options.port}: {error}; give another --port\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
