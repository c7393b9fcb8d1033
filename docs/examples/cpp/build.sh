#!/bin/sh
# Builds explain beside the torch that Python imports; the same command serves its CPU and CUDA wheels, and libtorch.
#     sh build.sh [OUT]        PYTHON=... for another interpreter, TORCH=... for an unpacked libtorch
# The explainer itself looks for libtorch.so where the old kind of rpath says.
set -e
torch=${TORCH:-$("${PYTHON:-python3}" -c "import torch; print(torch.__path__[0])")}
"${CXX:-g++}" -std=c++20 -O1 "$(dirname "$0")/explain.cpp" -o "${1:-explain}" \
  -I"$torch/include" -I"$torch/include/torch/csrc/api/include" \
  -L"$torch/lib" -Wl,--disable-new-dtags,-rpath,"$torch/lib" -ltorch_cpu -lc10
