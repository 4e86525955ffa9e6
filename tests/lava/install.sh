#!/usr/bin/env bash
# An environment with lava-nc 0.10.0 and lava-dl 0.6.0 on Python 3.11, CPU only:
#
#     tests/lava/install.sh FOLDER [PYTHON [PYTHON_WITH_TORCH]]
#
# From an environment with torch on the same disk its files are linked, not installed anew.
# The last releases ask for Python 3.10, torch < 2.4 and NumPy < 2, but are pure Python; what fails
# on newer ones is fixed at run time (plugins/lava/environment.py). An environment that is whole
# already is left as it is.
set -euo pipefail

folder=${1:?usage: install.sh FOLDER [PYTHON [PYTHON_WITH_TORCH]]}
python=${2:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ -e "$folder/.lava" ] && cmp -s "$here/install.sh" "$folder/.lava"; then
    exit 0
fi
"$python" -m venv "$folder"
install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

[ $# -lt 3 ] || "$here/../share_torch.sh" "$3" "$folder/bin/python"
# torch first and by its pin, so that nothing after it brings another build
install -c "$here/../../constraints.txt" torch
install -c "$here/../../constraints.txt" torch 'numpy>=1.26,<3' 'scipy>=1.14' 'h5py>=3.7' \
    networkx asteval matplotlib
install --no-deps --ignore-requires-python lava-nc==0.10.0 lava-dl==0.6.0

# both wheels install their tests as a top-level package of this name, in front of anybody's own
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site/tests"

# the package by its name, whatever the checkout is called
modules=$(mktemp -d)
trap 'rm -rf "$modules"' EXIT
ln -s "$here/../.." "$modules/spikingjelly_signgd"
PYTHONPATH="$modules" "$folder/bin/python" -W ignore -c 'import spikingjelly_signgd.plugins.lava'
cp "$here/install.sh" "$folder/.lava"
echo "Lava: LAVA_PYTHON=$folder/bin/python"
