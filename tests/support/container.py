"""A container without an engine: a root that cannot be written, a pod's mounts, what it keeps of root.

A mount namespace of its own, in it a root of the system's read-only directories, the image, and the mounts
of the pod's one container; then setpriv, with the capabilities of the manifest and no way to new
ones. Left out is what takes a kubelet: limits of memory, seccomp, and a network of its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.apihandle import Json
from tests.support.manifests import confined
from tests.support.requirements import missing

IMAGE = "/opt/podlift"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

_START = r"""
set -eu
root=$1 system=$2 devices=$3 mounts=$4
shift 4
mount -t tmpfs -o mode=755 tmpfs "$root"
show() { # source place ro|rw
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}"; : > "$root$2"; fi
    mount --bind "$1" "$root$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
}
for place in $system; do
    if [ -L "$place" ]; then cp -P "$place" "$root$place"; elif [ -e "$place" ]; then show "$place" "$place" ro; fi
done
mkdir "$root/proc"
mount -t proc proc "$root/proc"
for device in $devices; do show "$device" "$device" rw; done
for mount in $mounts; do
    rest=${mount#*:}
    show "${mount%%:*}" "${rest%%:*}" "${rest#*:}"
done
mount -o remount,ro "$root"
exec chroot "$root" "$@"
"""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", sys.base_prefix)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class Container:
    """What a pod's one container may do and see; ``volumes`` are directories for the pod's volumes."""

    def __init__(self, pod: Json, image: Path, volumes: Mapping[str, Path], folder: Path) -> None:
        (self.spec,) = pod["containers"]
        self._folder = folder
        places = [f"{image}:{IMAGE}:ro", f"{volumes['account']}:{ACCOUNT}:ro"]
        for mount in self.spec["volumeMounts"]:
            mode = "ro" if mount.get("readOnly") else "rw"
            places.append(f"{volumes[mount['name']]}:{mount['mountPath']}:{mode}")
        self._places = places
        needs_namespaces()

    def command(self, *program: str) -> list[str]:
        """Return the command that runs a program of the image in here."""
        root = Path(self._folder, f"root-{os.urandom(4).hex()}")
        root.mkdir()
        start = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _START, "start"]
        lists = [" ".join(words) for words in (_SYSTEM, _DEVICES, self._places)]
        given = self.spec["securityContext"]["capabilities"]["add"]
        assert self.spec["securityContext"]["readOnlyRootFilesystem"] is True
        assert self.spec["securityContext"]["allowPrivilegeEscalation"] is False
        return [*start, str(root), *lists, *confined(given), f"{IMAGE}/bin/python", *program]

    def agent(self) -> list[str]:
        """Return the command of the image, with the manifest's arguments."""
        return self.command(f"{IMAGE}/bin/podlift", *self.spec["args"])

    def environment(self, fields: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of the image and the manifest; ``fields`` are the pod's."""
        told = {
            variable["name"]: fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            if "valueFrom" in variable
            else variable["value"]
            for variable in self.spec["env"]
        }
        fixed = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return {"PATH": f"{IMAGE}/bin:/usr/sbin:/usr/bin:/sbin:/bin", **fixed, **told}


def needs_namespaces() -> None:
    """Skip where this user may make no mounts of its own."""
    how = "run the tests as root, where that may make mount namespaces"
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        missing("root with setpriv (for a container without an engine)", how)
    made = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "-t",
        "tmpfs",
        "tmpfs",
        "/mnt",
    ]
    if subprocess.run(made, capture_output=True, timeout=30).returncode != 0:
        missing("the right to mount (for a container without an engine)", how)
