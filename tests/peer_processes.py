"""Starts `fedloom` in processes for tests; torch is loaded once, in a process that all are forked of."""

import multiprocessing
import os
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fedloom.peer", "peft", "hivemind.p2p", "tiny"])


def _fedloom(words, log):
    """What a process does: the command, all that it says into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    from fedloom.cli import main

    torch.set_num_threads(1)
    sys.exit(main(words))


def start(words, log: Path):
    """A process with a `fedloom` command; its exit status is that of the command."""
    process = CONTEXT.Process(target=_fedloom, args=(words, str(log)), daemon=True)
    process.start()
    return process
