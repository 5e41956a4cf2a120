# Sourced by the .sbatch scripts, which set ROOT, the checkout. Paths are relative to where the job was submitted; ~ is
# home. `launch PROGRAM FLAGS...` starts one process per GPU, on one node or on all nodes of the Slurm job. PYTHON
# chooses the interpreter (default: the environment in .venv, if there is one).
PYTHON="${PYTHON:-$([ -x "$ROOT/.venv/bin/python" ] && echo "$ROOT/.venv/bin/python" || echo python)}"
GPUS_PER_NODE="${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-2}}"

home() { # NAME...: in these variables, a leading ~ is the home folder
  local name
  for name in "$@"; do
    case "${!name:-}" in
      "~" | "~/"*) printf -v "$name" '%s' "$HOME${!name#"~"}" ;;
    esac
  done
}

launch() {
  local nodes="${SLURM_NNODES:-1}"
  if [ "$nodes" -eq 1 ]; then
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$GPUS_PER_NODE" "$@"
    return
  fi
  local head
  head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
  srun --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    "$PYTHON" -m torch.distributed.run --nnodes="$nodes" --nproc_per_node="$GPUS_PER_NODE" \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$head:${MASTER_PORT:-24999}" "$@"
}
