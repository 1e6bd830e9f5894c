#!/usr/bin/env bash
# The package as its users get it: source distribution, wheel made of that, installed in an environment of its own, there
# the plugin compiled, a model deployed and a deck run on one and on two ranks, all outside the checkout:
#
#   tests/package.sh    [BUILD=build/package]
#
# The environment is a copy, by hard links where it can be, of the present one without this package. Nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
here=$("$python" -c 'import sys; print(sys.prefix)')
build=${BUILD:-build/package}
rm -rf "$build"
mkdir -p "$build"/{source,environment,work}
build=$(cd "$build" && pwd)
environment=$build/environment

echo "== source distribution and wheel"
git ls-files -z -- hienet deploy pair_hienet pyproject.toml README.md LICENSE | xargs -0 cp --parents -t "$build/source"
(cd "$build/source" && "$here/bin/python" -c 'from setuptools import build_meta; build_meta.build_sdist("..")' >"$build/sdist.log")
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --no-index -w "$build" "$build"/hienet-*.tar.gz
ls "$build"/hienet-*

echo "== an environment of its own"
cp -al "$here/." "$environment" 2>"$build/links.log" || cp -a "$here/." "$environment"
rm -rf "$environment/lib/hienet"
# Programs name their environment; a file that is written anew no longer shares its contents with the original.
for file in $(grep -rlI "$here/" "$environment"/bin "$environment/pyvenv.cfg" || true); do
  sed "s#$here/#$environment/#g" "$file" >"$file.new"
  chmod --reference="$file" "$file.new"
  mv "$file.new" "$file"
done
"$environment/bin/python" -m pip uninstall --quiet --yes hienet
"$environment/bin/python" -m pip install --quiet --no-deps --no-index "$build"/hienet-*.whl

echo "== its use"
cp lammps_examples/nve/in.nve "$build/work/"
cd "$build/work"
export PATH="$environment/bin:$PATH" VIRTUAL_ENV="$environment"
unset HIENET_PLUGIN_DIR LAMMPS_PLUGIN_PATH PYTHONPATH
python -c "import hienet, hienet_deploy, sys
assert hienet.__file__.startswith('$environment/'), hienet.__file__
assert hienet_deploy.__file__.startswith('$environment/'), hienet_deploy.__file__"
hienet --help >help
grep -q "train" help
hienet build
hienet new --elements Si,C -o random.pt
hienet-deploy random.pt -o random.hienet.pt
for ranks in 1 2; do
  mpirun -np $ranks lmp -in in.nve -var model random.hienet.pt -var steps 10 -log none >"nve.$ranks"
  grep "Loop time" "nve.$ranks"
done
echo "the package works"
