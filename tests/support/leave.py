"""Runs what Python's command line names (``-c code``, ``-m module``, or a script), and ends the process at once.

The engine of torch 1.8 waits at exit for threads that have ended, in about every third process that took a derivative.
"""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import traceback


def main(kind, *rest):
    if kind == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif kind == "-m":
        sys.path[0], sys.argv = "", list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = os.path.dirname(kind), [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


try:
    main(*sys.argv[1:])
    status = 0
except SystemExit as ended:
    status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    if isinstance(ended.code, str):
        print(ended.code, file=sys.stderr)
except BaseException:  # noqa: BLE001  # as the interpreter does
    traceback.print_exc()
    status = 1
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
