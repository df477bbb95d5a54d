#!/bin/sh
# Once one operation's precision is set by torch's current switch, torch's own context manager
# torch.backends.cudnn.flags() raises, whatever it is asked for, on a build without CUDA too.
#
# torch.backends.cudnn.conv.fp32_precision = "ieee" is the documented way to keep float32
# convolutions whole. After it the older flag torch.backends.cudnn.allow_tf32 can no longer be read,
# and `flags` reads it to put it back; setting recurrent layers alike does not help. So a library
# that wraps a pass in `with torch.backends.cudnn.flags(deterministic=True)` fails for exactly those
# users who care about precision, and it fails on their laptops.
#
# Seen with torch 2.13.0 (CPU build), Python 3.11:
#   before: flags() works
#   after:  flags(deterministic=True) raises RuntimeError, "PyTorch is checking whether allow_tf32
#           is enabled for cuDNN without a specific operator name, but the current flag(s) ..."
#   after:  reading torch.backends.cudnn.allow_tf32 raises the same
#   after rnn.fp32_precision is set to the same as well: still raises
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import sys

import torch


def tried(name, what):
    try:
        what()
    except RuntimeError as error:
        print(f"{name}: RuntimeError, {str(error)[:110]} ...")
        return False
    print(f"{name}: works")
    return True


def flags():
    with torch.backends.cudnn.flags(deterministic=True):
        pass


print("torch", torch.__version__, "CUDA", torch.version.cuda)
seen = [tried("before, flags", flags)]
torch.backends.cudnn.conv.fp32_precision = "ieee"
seen.append(tried("after, flags", flags))
seen.append(tried("after, allow_tf32", lambda: torch.backends.cudnn.allow_tf32))
torch.backends.cudnn.rnn.fp32_precision = "ieee"
seen.append(tried("rnn alike, flags", flags))
sys.exit(0 if seen == [True, False, False, False] else 1)
PY
