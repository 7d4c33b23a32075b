"""pyproject.toml, requirements.lock and environment.yml describe one environment, which make sets up."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PYTHONS = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])]

DECLARED = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
]
PINS = [Requirement(line) for line in LOCK.splitlines()]
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge calls a package something else


def pinned(name: str, python: str = "3.11", platform: str = "linux") -> list[str]:
    """The versions that the lock gives a package on one Python and platform: one, where all is well."""
    machine = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": platform}
    return [
        str(pin.specifier).removeprefix("==")
        for pin in PINS
        if canonicalize_name(pin.name) == canonicalize_name(name)
        and (pin.marker is None or pin.marker.evaluate(machine))
    ]


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_pins_every_dependency_once_and_inside_its_specifier(python, platform):
    # make sets the project up without build isolation, so what builds it is pinned as well
    for requirement in [*DECLARED, *map(Requirement, PYPROJECT["build-system"]["requires"])]:
        versions = pinned(requirement.name, python, platform)
        assert len(versions) == 1, f"{requirement.name}: pinned at {versions}. Run: make lock"
        assert versions[0] in requirement.specifier, f"{requirement}: pinned at {versions}. Run: make lock"


def test_lock_holds_exact_versions_and_no_addresses():
    assert "://" not in LOCK
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) and pin.url is None for pin in PINS)


def test_conda_environment_says_the_same():
    *conda, last = CONDA["dependencies"]
    assert CONDA["channels"] == ["conda-forge", "nodefaults"]
    assert "-e ." in last["pip"], "the project itself is installed through pip, from its own folder"
    given = [Requirement(line) for line in [*conda, *last["pip"]] if line not in ("pip", "-e .")]
    wanted = [*DECLARED, Requirement(f"python{PROJECT['requires-python']}")]
    assert {r.name: r.specifier for r in given} == {CONDA_NAMES.get(r.name, r.name): r.specifier for r in wanted}


def test_torch_and_torchvision_are_a_pair():
    (needed,) = [r for r in map(Requirement, metadata.requires("torchvision")) if r.name == "torch"]
    assert needed.specifier.contains(torch.__version__, prereleases=True)
    # a torchvision built for another torch imports, but without its compiled operators
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [2.0, 2.0, 3.0, 3.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    assert kept.tolist() == [0, 2]


def test_makefile_and_ci_cover_the_supported_pythons():
    below = f"3, {int(PYTHONS[-1].split('.')[1]) + 1}"
    supported = f"({PYTHONS[0].replace('.', ', ')}) <= sys.version_info < ({below})"
    assert supported in (ROOT / "Makefile").read_text(encoding="utf-8")
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python-version"] == [PYTHONS[0], PYTHONS[-1]]


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == metadata.version("lossbook")
