"""What `import hienet` and the installed package hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hienet

ROOT = Path(__file__).resolve().parent.parent


def test_the_public_names_are_there_and_torch_is_imported_only_for_them():
    program = (
        "import sys, hienet; assert 'torch' not in sys.modules; "
        "from hienet import HIENetCalculator, HIENetError, load_model; assert 'torch' in sys.modules; "
        "print(HIENetCalculator.__module__, load_model.__module__, HIENetError.__module__)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["hienet.calculator", "hienet.calculator", "hienet.errors"]
    assert all(getattr(hienet, name) is not None for name in hienet.__all__)


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="module `hienet` has no attribute `Calculator`"):
        hienet.Calculator  # noqa: B018


@pytest.mark.slow
def test_a_wheel_made_of_the_source_distribution_holds_all_sources_and_both_licences(tmp_path):
    """`hienet build` compiles from what was installed; tests/package.sh does so."""
    source = tmp_path / "source"
    hidden = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for folder in ("hienet", "deploy", "pair_hienet"):
        shutil.copytree(ROOT / folder, source / folder, ignore=hidden)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    expected = {
        path.relative_to(source).as_posix()
        for folder in ("hienet", "deploy", "pair_hienet")
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    make = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", make], cwd=source, check=True, capture_output=True, timeout=300)
    (sdist,) = tmp_path.glob("hienet-*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert expected | {"pyproject.toml", "README.md", "LICENSE"} <= held

    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(tmp_path), str(sdist)], check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("hienet-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.replace("deploy/", "hienet_deploy/", 1) for name in expected} - names == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/pair_hienet/LICENSE") for name in names)
