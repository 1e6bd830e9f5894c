"""The relaxation of Matbench Discovery's crystals."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from typer.testing import CliRunner

from hienet.errors import HIENetError

pytest.importorskip("phonopy", reason="the extra `properties` is not installed")

from hienet.properties import matbench_discovery

SIC_MODEL = Path(__file__).parent.parent / "lammps_examples" / "sic.pt"


def wbm_archive(path: Path, structures: dict[str, ase.Atoms]) -> Path:
    """As Matbench Discovery distributes initial structures."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, atoms in structures.items():
            atoms.info["material_id"] = name
            text = io.StringIO()
            ase.io.write(text, atoms, format="extxyz")
            archive.writestr(f"{name}.extxyz", text.getvalue())
    return path


def test_crystals_of_matbench_discovery_are_relaxed_and_an_interrupted_command_goes_on(tmp_path: Path) -> None:
    stretched = bulk("SiC", "zincblende", a=4.6)
    crystals = {"wbm-1-1": stretched, "wbm-1-2": bulk("Cu"), "wbm-1-3": stretched * (2, 1, 1)}
    archive = wbm_archive(tmp_path / "wbm.zip", crystals)

    def command(*more: object) -> str:
        given = [SIC_MODEL, archive, "-o", tmp_path / "results", *more]
        result = CliRunner().invoke(matbench_discovery.app, [str(word) for word in given], catch_exceptions=False)
        return result.output

    said = command()
    assert "wbm-1-2: failed: the structure contains Cu, but the model knows only C, Si" in said
    assert "2 of 3 crystals are in" in said
    lines = tmp_path / "results" / "hienet-001.jsonl"
    with gzip.open(tmp_path / "results" / "hienet-001.json.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert [row["material_id"] for row in rows] == ["wbm-1-1", "wbm-1-3"]
    assert rows[1]["hienet_energy"] == pytest.approx(2 * rows[0]["hienet_energy"], abs=2e-3)
    matrix = np.array(rows[0]["hienet_structure"]["lattice"]["matrix"])
    assert (4 * abs(np.linalg.det(matrix))) ** (1 / 3) == pytest.approx(4.389, rel=0.005)
    site = rows[0]["hienet_structure"]["sites"][1]
    assert site["species"] == [{"element": "C", "occu": 1}]
    assert np.array(site["abc"]) @ matrix == pytest.approx(np.array(site["xyz"]))
    # As a job that was killed in the middle of a line leaves it.
    whole = lines.read_text()
    lines.write_text(whole[: whole.index("\n") + 40])
    said = command()
    assert "wbm-1-3: relaxed" in said
    assert "wbm-1-1" not in said
    again = [json.loads(line) for line in lines.read_text().splitlines()]
    assert again[0] == rows[0]
    assert again[1]["hienet_energy"] == pytest.approx(rows[1]["hienet_energy"])
    assert "1 of 1 crystals" in command("--part", "3", "--parts", "3")


def test_what_is_no_archive_of_crystals_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HIENetError, match=r"cannot read .*none.zip.* expected an archive of extxyz files"):
        list(matbench_discovery.read_zip(tmp_path / "none.zip"))
    archive = wbm_archive(tmp_path / "wbm.zip", {"a": bulk("Si")})
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("b.extxyz", "1\nProperties=species:S:1:pos:R:3\nSi 0 0 0\n")
    with pytest.raises(HIENetError, match=r"`b.extxyz` in .* has no entry `material_id` that says which crystal it is"):
        list(matbench_discovery.read_zip(archive))
