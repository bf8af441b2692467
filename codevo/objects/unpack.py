"""``python -m codevo.objects.unpack KIND UNPACKED MEMBERS``: archive on standard input, body of a snapshot on
standard output.

A process of its own, with little memory and nothing secret in it, because it reads what strangers made. The
last line on standard error is JSON: ``{"files", "bytes", "left_out"}``, or ``{"refused", "too_large"}`` and
the exit code 1.
"""

from __future__ import annotations

import json
import os
import resource
import sys

from codevo.objects.archive_readers import Bounds, Refused
from codevo.objects.archives import convert

#: Bytes of address space, seconds of CPU.
MEMORY = 2**30
CPU = 600


def _limit() -> None:
    os.nice(10)  # people who work come first
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, CPU),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def main() -> int:
    """Convert; give the exit code."""
    kind, unpacked, members = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _limit()
    source = os.fdopen(0, "rb", closefd=False)
    sink = os.fdopen(1, "wb", closefd=False, buffering=2**18)
    try:
        survey = convert(source, kind, Bounds(unpacked, members), sink.write)
        sink.flush()
    except Refused as e:
        print(json.dumps({"refused": str(e), "too_large": e.too_large}), file=sys.stderr)
        return 1
    except BrokenPipeError:
        os._exit(2)  # nobody waits for it any more
    counts = {"files": survey.files, "bytes": survey.bytes, "left_out": survey.left_out}
    print(json.dumps(counts), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
