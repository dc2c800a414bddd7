"""The lock files, which `make` installs from, hold what pyproject.toml asks for."""

import re
import tomllib
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, list[Requirement]]:
    """Package → its versions; more than one where Python's version decides."""
    text = (ROOT / name).read_text().replace("\\\n", "")
    found: dict[str, list[Requirement]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line)
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", one) for one in hashes), line
            parsed = Requirement(requirement)
            found.setdefault(canonicalize_name(parsed.name), []).append(parsed)
    return found


def version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def missing(wanted: list[str], lock: dict[str, list[Requirement]]) -> list[str]:
    """What a lock does not hold at a version within the range; torch stands in none."""
    lacks = []
    for one in map(Requirement, wanted):
        found = lock.get(canonicalize_name(one.name), [])
        within = found and all(version(entry) in one.specifier for entry in found)
        if one.name != "torch" and not within:
            lacks.append(str(one))
    return lacks


@pytest.mark.parametrize(
    ("name", "extras"), [("requirements.lock", []), ("requirements-dev.lock", ["dev", "report", "plots"])]
)
def test_lock_holds_what_pyproject_asks_for(name, extras):
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *PROJECT["dependency-groups"]["models"]]
    wanted += [one for extra in extras for one in project["optional-dependencies"][extra]]
    assert missing(wanted, locked(name)) == []


def test_a_version_outside_the_range_or_an_absent_package_is_seen():
    lock = {"numpy": [Requirement("numpy==1.26.4")]}
    assert missing(["numpy>=2", "rich>=13", "torch>=2.8"], lock) == ["numpy>=2", "rich>=13"]


def test_every_build_of_torch_finds_its_other_requirements_locked():
    """But for the libraries of CUDA, which a build names to the digit."""
    wanted = [text for text in requires("torch") or [] if "extra ==" not in text]
    wanted = [text for text in wanted if not re.match(r"nvidia-|cuda-|triton", text)]
    assert wanted and missing(wanted, locked("requirements.lock")) == []


def test_both_locks_agree_and_name_no_index():
    small, all_of_it = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {name: list(map(version, found)) for name, found in small.items()} == {
        name: list(map(version, all_of_it[name])) for name in small
    }
    for name in ("requirements.lock", "requirements-dev.lock"):
        assert not re.search(r"://|--(extra-)?index-url|--find-links", (ROOT / name).read_text())
