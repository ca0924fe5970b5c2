#!/usr/bin/env bash
# One machine's part in a run on several; start it on each of them, from a checkout at the same place:
#
#   bash docs/cluster/torchrun.sh MACHINES NUMBER FIRST:PORT GPUS --config ... --data ... --output ...
#
# MACHINES: how many; NUMBER: this one's, from 0; FIRST: name of machine 0; GPUS: of this machine.
set -euo pipefail
machines=$1 number=$2 first=$3 gpus=$4
shift 4
exec torchrun --nnodes "$machines" --node_rank "$number" --nproc_per_node "$gpus" \
  --master_addr "${first%:*}" --master_port "${first##*:}" engine/train.py "$@"
