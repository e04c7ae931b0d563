#!/usr/bin/env bash
# Benchmarks on one GPU (about 6 minutes), and their results as a table:
#     bash benchmarks/gpu.sh DATA_FOLDER BERT_FOLDER [options of python -m benchmarks]
# DATA_FOLDER contains MNIST, CIFAR-10 and SST-2. BERT_FOLDER contains a pretrained BERT.
set -uo pipefail
cd "$(dirname "$0")/.."
python -m benchmarks loader step cifar cifar94 bert start --data "$1" --model "$2" --pairs 2 "${@:3}"
code=$?
python -m benchmarks.table
exit $code
