"""Set up before `fedloom` is imported: shapes are checked at run time, and the network is never asked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import dataclasses
import functools
import gc
import sys
import types

import jaxtyping
import pytest
from places import HELPERS, ROOT
from shapes import calls, check_shapes

# What collecting reads stays to the end: to look through it again and again takes a third of its time.
gc.disable()
# What a test writes, nobody reads after a power failure: a call that is right succeeds, at once.
os.fsync = os.fstat
# Helpers assert too.
pytest.register_assert_rewrite(
    *({file.stem for file in HELPERS.glob("*.py")} - {"places", "shapes", "tried"})
)


def pytest_configure(config):
    """Shapes are checked; all other annotations are mypy's. What is deployed runs in other tests, too.

    The process that only deals tests out to workers does without torch.
    """
    if config.option.dist == "no":
        import torch

        # Waking a second thread takes longer than all of a tiny model's arithmetic.
        torch.set_num_threads(1)
    if config.option.markexpr != "deploy":
        check_shapes(
            [
                ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                for file in (ROOT / "fedloom").rglob("*.py")
                if "from jaxtyping" in file.read_text(encoding="utf-8")
            ]
        )


def pytest_ignore_collect(collection_path, config):
    """With ``-m deploy`` or ``-m families`` a file without such a test is not imported: most have none."""
    words = {"deploy": "mark.deploy", "families": "sweep("}
    word = words.get(config.option.markexpr)
    if word and collection_path.match("test_*.py"):
        return True if word not in collection_path.read_text(encoding="utf-8") else None
    return None


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope
def pytest_runtest_setup(item):
    calls.clear()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


# The others are over sooner than these: first those of real processes, then those of `make test`.
LONGEST = [
    "runtimes/ranks/test_distributed.py",
    "runtimes/libp2p/test_processes.py",
    "runtimes/flower/test_deployed.py",
    "runtimes/flower/test_simulation.py",
    "runtimes/flower/test_break_in.py",
    "report/test_browser.py",
    "federation/test_methods.py",
    "project/test_benchmarks.py",
    "commands/test_fed.py",
    "evaluation/test_generate.py",
    "federation/test_methods_graph.py",
    "commands/test_demo.py",
    "runtimes/flower/test_parts.py",
    "commands/test_audit_privacy.py",
    "commands/test_dfl.py",
    "commands/test_fed_privacy.py",
    "project/test_docs.py",
    "test_api.py",
    "project/test_imports.py",
]


def pytest_collection_modifyitems(config, items):
    """What takes longest begins first, or all would wait for it at the end."""
    for item in items:
        if item.get_closest_marker("deploy"):  # a machine with other work is no fault: only what hangs is
            item.add_marker(pytest.mark.timeout(900))
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores for processes that wait for each other much of the time."""
    return (os.cpu_count() or 1) + 1 if config.option.markexpr == "deploy" else None


@pytest.fixture
def full_precision(monkeypatch):
    """Llama's norm and BLOOM's softmax round to float32 on the way; at 1e-10 that is noise on either side."""
    import torch
    import torch.nn.functional as F
    from transformers.models.bloom import modeling_bloom
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    def softmax(x, dim, dtype):
        return F.softmax(x, dim=dim)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_bloom, "F", types.SimpleNamespace(**{**vars(F), "softmax": softmax}))


@pytest.fixture(autouse=True)
def methods_as_they_were(monkeypatch):
    """What a test's plugin adds to the table goes with the test."""
    from fedloom.options import methods, parts

    rows = list(methods.METHODS)
    monkeypatch.setattr(parts, "_plugged", dict(parts._plugged))
    monkeypatch.setattr(parts, "_loaded", set(parts._loaded))
    yield
    methods.METHODS[:] = rows


@pytest.fixture(autouse=True)
def models_tried_once(request, monkeypatch):
    """Where nobody asks how a model is run."""
    if "fedloom.model.stacked" in sys.modules and "model" not in request.path.parts:
        from tried import try_once

        try_once(monkeypatch)


SAID_ONCE = (
    ("fedloom.federation.aggregators", "warn_of_nobody"),
    ("fedloom.federation.aggregators.krum", "_warn"),
    ("fedloom.options.method", "_say_once"),
)


@pytest.fixture(autouse=True)
def what_is_said_once_is_said_anew():
    """A process says some things once; here many tests share one."""
    for module, name in SAID_ONCE:
        if module in sys.modules:
            getattr(sys.modules[module], name).cache_clear()


@pytest.fixture
def without_shape_checks():
    """Where a hundred families run the same code, checking its shapes takes as long as all else."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def few_problems(monkeypatch):
    """The embedded task has a tenth of its problems: to make and to read all takes longer than to train."""
    from fedloom.data import arithmetic
    from fedloom.data.tasks import TASKS

    few = functools.partial(arithmetic.splits, train=400, validation=20, test=20)
    monkeypatch.setitem(TASKS, "arithmetic", dataclasses.replace(TASKS["arithmetic"], embedded=few))
