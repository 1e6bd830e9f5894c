#!/usr/bin/env bash
# Tries a version of torch in an environment of its own: installs it, compiles the plugin against it, runs the tests.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tests/try_torch.sh TORCH [PYTEST_ARGUMENT ...]

TORCH: a version, such as 2.14.1, or the path or address of a wheel
PYTEST_ARGUMENT: what to run; all tests if none is given

environment:
  PYTHON    interpreter for the environment   [python3]
  PIP_ARGS  further arguments for pip, such as --index-url ADDRESS for builds of torch for CPUs, which are small
  FOLDER    where the environment is made and kept; otherwise it is made in a temporary folder and removed

A build of torch for CUDA, the default of pip on Linux, takes some 25 GB of disk while it is installed.
TEXT
}

case "${1:-}" in
  "" | -h | --help) usage; [ $# -gt 0 ]; exit ;;
esac
torch=$1
shift
case "$torch" in
  *.whl | *://*) requirement=$torch ;;
  *) requirement="torch==$torch" ;;
esac
if [[ "$requirement" == *.whl && "$requirement" != *://* ]]; then
  [ -f "$requirement" ] || { echo "error: there is no wheel \`$requirement\`; give a version, or check the path" >&2; exit 1; }
  requirement=$(realpath "$requirement")
fi

root=$(cd "$(dirname "$0")/.." && pwd)
if [ -n "${FOLDER:-}" ]; then
  mkdir -p "$FOLDER"
  folder=$(cd "$FOLDER" && pwd)
else
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi

# All versions of constraints.txt but torch's.
grep -v '^torch==' "$root/constraints.txt" > "$folder/constraints.txt"

"${PYTHON:-python3}" -m venv "$folder/venv"
bin=$folder/venv/bin
pip() { "$bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
# shellcheck disable=SC2086  # several words are meant
pip install ${PIP_ARGS:-} -c "$folder/constraints.txt" "$requirement" setuptools wheel
installed=$("$bin/python" -c 'import torch; print(torch.__version__)')
echo "torch==$installed" >> "$folder/constraints.txt"

# Without build isolation and with torch in the constraints, nothing installs another torch. Not editable, so that what
# is tried is the package, and the working tree stays as it is.
mkdir -p "$folder/source"
git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents --target-directory "$folder/source")
pip install -c "$folder/constraints.txt" --no-build-isolation "$folder/source[dev]"
"$bin/hienet" build
cd "$folder/source"
PATH="$bin:$PATH" "$bin/pytest" "$@"
echo "torch $installed: passed"
