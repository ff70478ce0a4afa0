"""Fresh interpreters for tests of what happens at import, in an environment, or on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import torch_func_compat

PACKAGE = Path(torch_func_compat.__file__).resolve().parent
HANGS_AT_EXIT = torch.__version__.startswith("1.8.")


def run_python(*arguments, path=(), cwd=None, **variables):
    """Run this Python in the folder `cwd`, which finds the package where this process did.

    `path` goes before it. The package's own settings are taken out of the environment; `variables` go into it,
    or out of it where they are None.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_FUNC_COMPAT_")}
    env["PYTHONPATH"] = os.pathsep.join([*map(str, path), str(PACKAGE.parent), *filter(None, [env.get("PYTHONPATH")])])
    for name, value in variables.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    options = []
    while arguments[0] in ("-W", "-X"):
        options, arguments = [*options, *arguments[:2]], arguments[2:]
    if HANGS_AT_EXIT:
        options.append(str(Path(__file__).with_name("leave.py")))
    return subprocess.run([sys.executable, *options, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
