"""Two processes as torchrun starts them."""

import os
import signal
import subprocess
import sys


def run_two(source, folder):
    """Run a script, which gets ``folder`` as its argument, in two processes of one thread each."""
    script = folder / "two.py"
    script.write_text(source)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, str(folder)], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as torchrun:
        try:
            _, said = torchrun.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(torchrun.pid, signal.SIGKILL)  # its children too
            raise
    assert torchrun.returncode == 0, said[-2000:]
