"""Peak memory and time of the stages that use networks, measured by a few real steps in a process of their own.

A process of its own because memory that the doctor itself took would count otherwise, and because steps that do not
fit must not take the doctor with them. The job goes in and the results come out as JSON; nothing is pickled.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 50.0

Measured = dict[str, Any]
"""part, seconds, bytes (peak), and for the failed one: error."""


def measured(job: Mapping[str, Any], limit_seconds: float = LIMIT_SECONDS) -> tuple[list[Measured], str]:
    """Run a job.

    Args:
        job: for an experiment a :class:`medgen.doctor.parts.Job` as plain data; for a model: model.
        limit_seconds: after which the process is ended.

    Returns:
        What was measured, and why that is not all; empty where it is.
    """
    command = [sys.executable, "-m", "medgen.doctor.steps"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            out, complaint = child.communicate(json.dumps(job), timeout=limit_seconds)
            late = False
        except subprocess.TimeoutExpired:
            child.kill()
            out, complaint = child.communicate()
            late = True
    found = [json.loads(line) for line in out.splitlines() if line.startswith('{"part"') and line.endswith("}")]
    done = [m for m in found if "error" not in m]
    errors = [m["error"] for m in found if "error" in m]
    if errors:
        return done, str(errors[0])
    if late:
        return done, f"not finished within {limit_seconds:.0f} s"
    if child.returncode:
        last = (complaint.strip().splitlines() or ["no message"])[-1]
        killed = "killed, most likely for want of memory" if child.returncode == -9 else last[:200]
        return done, killed
    return done, ""


def reset_peak() -> None:
    """Let the peak of this process's memory start from what it holds now (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system: the peak since the start is an upper bound
        return


def peak_bytes() -> int:
    """Largest resident memory of this process since :func:`reset_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
