#!/usr/bin/env bash
# tests/share_torch.sh FROM TO: the torch of the interpreter FROM for the environment of TO, as links
# to the same files. pip finds it installed, with what it asks for still to come.
set -euo pipefail

packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
from=$(packages "$1")
to=$(packages "$2")
cd "$from"
cp -al torch torchgen functorch torch-*.dist-info "$to"
