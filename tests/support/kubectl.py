"""kubectl, as the people have it who look at what the agent wrote."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.apihandle import ApiServer
from tests.support.requirements import missing


class Kubectl:
    """kubectl as a program, in a server's namespace."""

    def __init__(self, server: ApiServer, home: Path) -> None:
        found = shutil.which("kubectl")
        if found is None:
            missing("kubectl", "apt-get install kubernetes-client")
        self._command = [found, "--kubeconfig", str(server.kubeconfig), "-n", server.namespace]
        self._env = {"PATH": os.environ["PATH"], "HOME": str(home)}

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *args], env=self._env, stdout=subprocess.PIPE, text=True
        )

    def run(self, *args: str, text: str = "") -> str:
        done = subprocess.run(
            [*self._command, *args],
            env=self._env,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
