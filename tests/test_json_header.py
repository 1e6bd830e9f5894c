"""The JSON library of the plugin, in the form in which it is installed and in those that LAMMPS brings."""

from __future__ import annotations

import subprocess

import pytest

from hienet.build import find_toolchain

LIBRARY = "namespace {namespace} {{ template <class T = int> struct basic_json {{ T value; }}; }}\n"
GUARD = '#if !defined(LMP_JSON_H)\n#error Please include "json.h" instead of "nlohmann/json.hpp"\n#endif\n'
COPY_OF_LAMMPS = "#define LMP_NLOHMANN_JSON_NAMESPACE nlohmann_lmp\n" + LIBRARY.format(namespace="nlohmann_lmp")


@pytest.mark.parametrize(
    "library",
    [LIBRARY.format(namespace="nlohmann"), COPY_OF_LAMMPS, GUARD + COPY_OF_LAMMPS],
    ids=["installed", "lammps", "lammps-2026"],
)
def test_every_form_of_the_library_is_taken(library, tmp_path):
    (tmp_path / "nlohmann").mkdir()
    (tmp_path / "nlohmann" / "json.hpp").write_text(library)
    tools = find_toolchain()
    source = tmp_path / "use.cpp"
    # LAMMPS' own header of that name can still be included afterwards.
    source.write_text(
        '#include "engine/json.h"\n#ifdef LMP_JSON_H\n#error still defined\n#endif\nhienet::json number{1};\n'
    )
    folders = (f"-I{tmp_path}", f"-I{tools.sources}")
    command = [str(tools.compiler), "-std=c++17", "-fsyntax-only", *folders, str(source)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
