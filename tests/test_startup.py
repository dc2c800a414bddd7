"""What a process has from its start."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from fedloom.errors import UserError
from fedloom.options.fed import FedConfig
from fedloom.process import uncollected
from fedloom.runtimes.group import ALONE
from fedloom.training.launch import built

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")

SAY = """
import os, sys
from fedloom.process import restart_prepared
print("began", flush=True)
restart_prepared()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])
"""


def said(tmp_path, tunables=None):
    """What a process prints that restarts itself, and its number."""
    script = tmp_path / "say.py"
    script.write_text(SAY)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, script, "--lr", "1e-3"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return printed.splitlines(), process.pid


def test_a_process_begins_again_once_under_its_own_number(tmp_path):
    lines, pid = said(tmp_path)
    assert lines == ["began", "began", f"{pid} glibc.malloc.tcache_count=0 --lr 1e-3"]


def test_other_settings_stay(tmp_path):
    lines, _ = said(tmp_path, tunables="glibc.malloc.arena_max=1")
    assert lines[-1].split()[1] == "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0"


def test_what_somebody_has_set_stays(tmp_path):
    lines, pid = said(tmp_path, tunables="glibc.malloc.tcache_count=7")
    assert lines == ["began", f"{pid} glibc.malloc.tcache_count=7 --lr 1e-3"]


def test_a_mistake_keeps_its_exit_status():
    command = [sys.executable, "-m", "fedloom", "fedd"]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("unknown command fedd") == 1


def test_within_a_start_nobody_looks_for_circles_and_afterwards_as_before():
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError), uncollected():
        raise ValueError
    assert gc.isenabled()


def test_the_parts_of_a_run_are_built_so(tmp_path):
    seen = []

    def build(config, group, inputs):
        seen.append(gc.isenabled())
        raise UserError("enough")

    with pytest.raises(UserError), built(FedConfig(out_dir=str(tmp_path)), tmp_path / "run", build, ALONE):
        pass
    assert seen == [False] and gc.isenabled()


def test_what_a_command_imports_is_not_looked_at_again():
    code = """import gc
from fedloom.process import loading
with loading():
    import json.tool
print(gc.get_freeze_count())"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True)
    assert int(done.stdout) > 1000
