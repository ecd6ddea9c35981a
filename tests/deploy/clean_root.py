"""A root file system for the steps of the Dockerfile, where no engine of containers runs: namespaces of Linux do.

The machine's `/usr` and Python are bound into it, read-only, in place of the base image. Nothing else of the machine is
there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEVICES = ("null", "zero", "random", "urandom")
LOCKED = "--clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
NEEDED = ("unshare", "chroot", "setpriv", "mount", "ip")


def missing() -> str:
    """Why there can be none here; empty where there can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} is not installed"
    if os.geteuid():
        return "only root may bind folders into another root"
    done = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"there are no namespaces here: {done.stderr.strip()}" if done.returncode else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanRoot:
    """folder  what is `/` for the steps
    bases   folders of the machine that are seen there, read-only
    """

    folder: Path
    bases: tuple[str, ...] = ("/usr", sys.base_prefix)

    def make(self) -> None:
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.folder / name).symlink_to(f"usr/{name}")
        for name in ("proc", "dev", "tmp", "etc"):
            (self.folder / name).mkdir()
        (self.folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        for name in DEVICES:
            (self.folder / "dev" / name).touch()
        for base in self.bases:
            (self.folder / base.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def run(
        self, script: str, environment: dict[str, str], *, user: str = "", volumes: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of sh in it.

        Args:
            script: What `sh -ec` takes.
            environment: All variables that there are.
            user: `UID:GID`: without rights, on a root that cannot be written, without network; empty: root, who builds.
            volumes: Folders that can be written all the same, beside `/tmp`.
        """
        at = self.folder
        lines = ["mount --make-rprivate /", f"mount --bind {at} {at}", f"mount -t proc proc {at}/proc"]
        lines += [f"mount -t tmpfs -o mode=1777 tmpfs {at}/tmp"]
        lines += [f"mount --bind /dev/{name} {at}/dev/{name}" for name in DEVICES]
        for base in self.bases:
            lines += [f"mount --bind {base} {at}{base}", f"mount -o remount,bind,ro {at}{base}"]
        lines += [f"mount --bind {at}{volume} {at}{volume}" for volume in volumes]
        enter = f'exec chroot {at} sh -ec "$SCRIPT"'
        spaces = ["--mount", "--pid", "--fork", "--kill-child"]
        if user:
            uid, gid = user.split(":")
            spaces += ["--net"]
            lines += ["ip link set lo up", f"mount -o remount,bind,ro {at}"]
            enter = f'exec chroot {at} setpriv --reuid={uid} --regid={gid} {LOCKED} sh -ec "$SCRIPT"'
        command = ["unshare", *spaces, "sh", "-ec", "\n".join([*lines, enter])]
        given = {**environment, "SCRIPT": script}
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=1800)
