#!/usr/bin/env bash
# The README's cluster route under a real Slurm of one node on this machine: train with two processes, requeue, merge,
# stage 2, evaluate, evaluate as an array, train further, evaluate again. About five minutes on two CPU cores.
#
#   bash scripts/test_slurm.sh            skipped, with the reason, where no Slurm can be had
#   KEEP=1 bash scripts/test_slurm.sh     leaves its folder, with Slurm's logs
#
# Needs root, Slurm and munge (Debian: apt-get install slurm-wlm munge; done here if possible). Everything listens on
# the loopback address only and ends with the script.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt

skip() {
  echo "SKIPPED: no Slurm route was tested: $1"
  exit 0
}

[ "$(id -u)" = 0 ] || skip "starting Slurm's daemons needs root"
if ! command -v slurmctld > /dev/null || ! command -v munged > /dev/null; then
  command -v apt-get > /dev/null || skip "slurmctld and munged are not installed, and there is no apt-get"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge; } > /dev/null 2>&1 ||
    skip "apt-get could not install slurm-wlm and munge"
fi

work="$(mktemp -d)"
export SLURM_CONF="$work/slurm.conf"
unset "${!SLURM_JOB@}" "${!SBATCH@}"

finish() {
  local status=$? pid
  [ "$status" -eq 0 ] || tail -n 150 "$work"/*.log
  scancel --user root 2> /dev/null || true
  for pid in "$work"/*.pid; do
    [ -s "$pid" ] && kill "$(cat "$pid")" 2> /dev/null || true
  done
  [ -n "${KEEP:-}" ] && echo "kept: $work" || rm -rf "$work"
  exit "$status"
}
trap finish EXIT

free_ports="$(python -c '
import socket
probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(probe.getsockname()[1] for probe in probes))')"
read -r controller_port node_port <<< "$free_ports"
name="$(hostname -s)"
mkdir -p "$work/state" "$work/spool"
cat > "$SLURM_CONF" << END
ClusterName=onenode
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
GresTypes=gpu
NodeName=$name NodeAddr=127.0.0.1 CPUs=$CORES RealMemory=1 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
# Two pretended GPUs, so that SLURM_GPUS_ON_NODE is 2 and two processes start.
printf 'Name=gpu File=/dev/null,/dev/zero\n' > "$work/gres.conf"

# A munge of its own: key, socket and log in the folder.
dd if=/dev/urandom bs=1 count=1024 of="$work/munge.key" 2> /dev/null
chmod 600 "$work/munge.key"
chmod 755 "$work"
munged --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
  --log-file="$work/munged.log" --seed-file="$work/munged.seed"
setsid slurmctld -D -f "$SLURM_CONF" > /dev/null 2>&1 &
setsid slurmd -D -f "$SLURM_CONF" > /dev/null 2>&1 &

wait_for() { # SECONDS, WHAT, COMMAND...: until it succeeds
  local seconds="$1" what="$2"
  shift 2
  for _ in $(seq $((2 * seconds))); do
    "$@" > /dev/null 2>&1 && return 0
    sleep 0.5
  done
  echo "error: after $seconds s still not: $what" >&2
  return 1
}
is_idle() { sinfo --noheader --format=%T | grep -q idle; }
ended() { ! squeue --noheader --job "$1" 2> /dev/null | grep -q .; }
pending() { squeue --noheader --job "$1" --format=%T | grep -q PENDING; }
wait_for 30 "an idle node" is_idle || skip "the node of this Slurm did not come up (KEEP=1 leaves its logs)"
echo "== Slurm $(sinfo --version | cut -d' ' -f2) on $name"

submit() { # SCRIPT and flags of sbatch and of the program; prints the job's number
  sbatch --parsable --mem=0 --cpus-per-task="$CORES" --output="$work/%x-%j.log" "$@"
}
result_of() { # JOB EXPECTED: wait for a job and compare its exit code
  wait_for 400 "job $1 ended" ended "$1"
  local code
  code="$(scontrol show job "$1" | sed -n 's/.*ExitCode=\([0-9]*\):.*/\1/p' | sort -u | tail -n 1)"
  [ "$code" = "$2" ] || { echo "error: job $1 ended with $code, not $2" >&2; return 1; }
}
step_of() { python -c 'import json, sys; print(json.load(open(sys.argv[1] + "/run.json"))["step"])' "$1"; }
is_there() { [ -f "$runs/stage1/ckpt_model/latest" ]; }

runs="$work/runs" base="$ROOT/assets/tiny_base"
python -m datasets.synthetic --out "$work/data" --seed 3 --num_videos 4 --num_refytvos 3 --num_mevis 1 --height 48 \
  --width 64 > /dev/null
export LOG_BASE_DIR="$runs" DATASET_DIR="$work/data" STEPS_PER_EPOCH=4 GRAD_ACCUM=1 EPOCHS=5 NUM_FRAMES=2
export VIDEO_ROOT="$work/data/GroundMoRe/groundmore_videos" META_FILE="$work/data/GroundMoRe/trainval_v2.json"
trial=(--device cpu --precision fp32 --workers 0 --warmup_steps 1 --lora_r 4 --lr 1e-3 --picture_freq 0
  --keep_ckpt_every 1)
evaluation=(--limit 3 --pictures 0 --device cpu)

echo "== stage 1: two processes, requeued after a checkpoint"
job="$(BASE_MODEL="$base" EXP_NAME=stage1 submit scripts/train_mora_h200.sbatch "${trial[@]}")"
wait_for 200 "a checkpoint of stage 1" is_there
scontrol requeue "$job"
wait_for 60 "job $job waits" pending "$job"
scontrol update JobId="$job" StartTime=now # or it would wait for two minutes
result_of "$job" 0
[ "$(step_of "$runs/stage1/ckpt_model")" = 20 ]
grep -q "going on after step" "$work/mora-stage1-$job.log"
[ "$(grep -c "parameters learn" "$work/mora-stage1-$job.log")" = 2 ] # both attempts are in the log

echo "== merge, stage 2"
python merge_lora_weights_and_save_hf_model.py --version "$base" --weight "$runs/stage1/ckpt_model_epoch_005" \
  --save_path "$work/exported/stage1" > "$work/merge.log" 2>&1
export BASE_MODEL="$work/exported/stage1" EXP_NAME=stage2 LOC_MODE=global
job="$(EPOCHS=1 submit scripts/finetune_groundmore_loc_h200.sbatch "${trial[@]}")"
result_of "$job" 0

echo "== evaluation of the checkpoint, submitted from another folder"
export CKPT_DIR="$runs/stage2/ckpt_model"
script="$ROOT/scripts/eval_groundmore_ckpt.sbatch"
job="$(cd "$work" && EVAL_NAME=one submit --gpus=1 "$script" "${evaluation[@]}")"
result_of "$job" 0
echo "== the same as an array of three"
job="$(EVAL_NAME=three submit --gpus=0 --cpus-per-task=1 --array=0-2 "$script" "${evaluation[@]}")"
result_of "$job" 0
cmp "$runs/eval_results/one.txt" "$runs/eval_results/three.txt"

echo "== trained further, evaluated again"
job="$(EPOCHS=2 submit scripts/finetune_groundmore_loc_h200.sbatch "${trial[@]}")"
result_of "$job" 0
job="$(EVAL_NAME=one submit "$script" "${evaluation[@]}")"
result_of "$job" 2 # the records are those of other weights
job="$(EVAL_NAME=one submit "$script" "${evaluation[@]}" --overwrite)"
result_of "$job" 0
job="$(CKPT_DIR="$runs/exported/one/hf" EVAL_NAME=folder submit "$script" "${evaluation[@]}")"
result_of "$job" 0
cmp "$runs/eval_results/one.txt" "$runs/eval_results/folder.txt"
printf '== the whole route passed in %d s\n' "$SECONDS"
