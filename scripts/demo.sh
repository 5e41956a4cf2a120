#!/usr/bin/env bash
# MoRA from nothing to masks on one machine: environment, a motion corpus, two stages of training, export, evaluation.
#
#   bash scripts/demo.sh            about 15 minutes on 2 CPU cores; uses a GPU if there is one
#   bash scripts/demo.sh --quick    the same path in under three minutes; too short to learn
#   bash scripts/demo.sh --full     a harder world and more of it, an hour or two on 2 CPU cores
#   bash scripts/demo.sh --backbone qwen    the same with a tiny Qwen3-VL in LLaVA's place
#   bash scripts/demo.sh --ablation trains stage 2 a second time without [LOC] (--seg_only) and adds its row
#   bash scripts/demo.sh --out DIR  where to write (default demo_output, with _qwen, _quick or _full behind it)
#
# Interrupted? Run it again: finished steps are skipped, training continues from its last checkpoint.

mode=demo
backbone=llava
out=""
ablation=no
while [ "$#" -gt 0 ]; do
  case "$1" in
    --quick) mode=quick ;;
    --full) mode=full ;;
    --ablation) ablation=yes ;;
    --backbone)
      case "${2:-}" in
        llava | qwen) backbone="$2" ;;
        *) echo "error: --backbone needs llava or qwen" >&2; exit 2 ;;
      esac
      shift
      ;;
    --out)
      [ "$#" -ge 2 ] || { echo "error: --out needs a folder" >&2; exit 2; }
      out="$2"
      shift
      ;;
    -h | --help)
      sed -n '2,11s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "error: unknown argument $1; see bash $0 --help" >&2
      exit 2
      ;;
  esac
  shift
done
set --
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt

case "$backbone" in
  llava) program=train_ds.py base=assets/tiny_base trained="language_model.*||projector.*" suffix="" ;;
  # The vision tower is one of Qwen's networks and learns with them.
  qwen) program=train_qwen_ds.py base=assets/tiny_qwen_base trained="language_model.*" suffix=_qwen ;;
esac
begin=0 # SECONDS counts from the start of this script, the installation included
case "$mode" in
  quick)
    out="${out:-demo_output${suffix}_quick}" level=easy
    train_videos=48 referring_videos=24 test_videos=12
    stage1_steps=6 stage2_steps=10 warmup=2
    ;;
  demo)
    out="${out:-demo_output$suffix}" level=easy
    train_videos=2400 referring_videos=500 test_videos=130
    stage1_steps=140 stage2_steps=850 warmup=30
    ;;
  full)
    out="${out:-demo_output${suffix}_full}" level=hard
    train_videos=6000 referring_videos=1500 test_videos=200
    stage1_steps=700 stage2_steps=5500 warmup=100
    ;;
esac
base="${BASE_MODEL:-$base}"
# LoRA is made for bases that know a lot. This one knows single pictures only, so the demo trains the whole language
# model, the projector (of Qwen3-VL the tower), the read-out, the [LOC] head and SAM's mask decoder; LLaVA's tower and
# SAM's image encoder stay as they are.
trainable="$trained||text_hidden_fcs.*||sam.mask_decoder.*"
mkdir -p "$out"

gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
if [ "$gpus" -gt 0 ]; then
  processes="$gpus" precision=bf16
else
  processes="$(( CORES < 2 ? 1 : 2 ))" precision=fp32
  export DS_ACCELERATOR=cpu
fi
batch=$(( 16 / processes > 0 ? 16 / processes : 1 ))
# A free port, so that two demos on one machine do not meet.
port="${MASTER_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}"

step() {
  printf '\n== [%3d min %02d s] %s\n' $(( (SECONDS - begin) / 60 )) $(( (SECONDS - begin) % 60 )) "$1"
}

run() {
  echo "+ $*"
  "$@"
}

train() { # name, base, then flags of the training program
  local name="$1" base="$2"
  shift 2
  run deepspeed --quiet --num_gpus "$processes" --master_port "$port" "$program" \
    --version "$base" --dataset_dir "$out/data" --log_base_dir "$out/runs" --exp_name "$name" --auto_resume \
    --precision "$precision" --batch_size "$batch" --grad_accumulation_steps 1 --epochs 1 --lora_r 0 \
    --num_frames 8 --frame_sampling jitter --mask_frames 1 --outside_window ignore --workers 1 \
    --lr_schedule cosine --min_lr_ratio 0.03 --beta2 0.98 --weight_decay 0.02 --dice_loss_weight 1.0 \
    --no-gradient_checkpointing --save_every_steps 200 --picture_freq 200 --print_freq 10 --seed 7 "$@"
}

export_model() { # name, base, folder
  run python merge_lora_weights_and_save_hf_model.py --version "$2" --weight "$out/runs/$1/ckpt_model" \
    --save_path "$3" --reuse
}

model="$out/mora-tiny"
evaluate() { # name of the result, questions, then flags of evaluate_groundmore.py
  local name="$1" questions="$2"
  shift 2
  run python evaluate_groundmore.py --version "$model" --video_root "$out/data_test/GroundMoRe/groundmore_videos" \
    --meta_file "$out/data_test/GroundMoRe/$questions" --output_dir "$out/eval/$name" \
    --result_file "$out/results/$name.txt" --num_frames 8 --force_seg_token --max_new_tokens 12 "$@"
}

step "1/6 corpora: $train_videos motion videos, $referring_videos referring videos, $test_videos unseen ones"
run python -m datasets.synthetic --out "$out/data" --seed 1 --level "$level" --num_videos "$train_videos" \
  --num_refytvos "$referring_videos" --num_mevis $((referring_videos / 3))
run python -m datasets.synthetic --out "$out/data_test" --seed 1001 --level "$level" --num_videos "$test_videos" \
  --split test --corpora groundmore

step "2/6 stage 1: referring on Refer-YouTube-VOS and MeViS, [SEG] only"
train stage1 "$base" --dataset "refer_video_seg||mevis" --sample_rates "3,1" --seg_only \
  --steps_per_epoch "$stage1_steps" --warmup_steps "$warmup" --lr 1e-3 --max_questions 5 --trainable "$trainable"
export_model stage1 "$base" "$out/mora-tiny-stage1"

train_stage2() { # name, then what to do with [LOC]
  local name="$1"
  shift
  train "$name" "$out/mora-tiny-stage1" --dataset "groundmore||refer_video_seg" --sample_rates "8,1" \
    --steps_per_epoch "$stage2_steps" --warmup_steps "$warmup" --lr 1e-3 --max_questions 8 "$@"
}

step "3/6 stage 2: motion questions of GroundMoRe, [SEG] and [LOC]"
train_stage2 stage2 --loc_mode global --trainable "$trainable||loc_head.*"

step "4/6 export"
export_model stage2 "$out/mora-tiny-stage1" "$model"

step "5/6 evaluation on $test_videos unseen videos, and controls"
# The controls take the second core while the main evaluation takes the first.
{
  evaluate referring referring_test.json --prompt referring --limit 60 --pictures 20
  evaluate one_frame groundmore_test.json --force_loc_token --use_loc_refine --frame_control repeat_first \
    --limit 60 --pictures 0
  evaluate shuffled groundmore_test.json --force_loc_token --use_loc_refine --frame_control shuffle \
    --limit 60 --pictures 0
} > "$out/controls.log" 2>&1 &
controls=$!
evaluate groundmore groundmore_test.json --force_loc_token --use_loc_refine --loc_threshold 0.5
wait "$controls" || { tail -n 20 "$out/controls.log" >&2; echo "error: a control failed, see $out/controls.log" >&2; exit 1; }

if [ "$ablation" = yes ]; then
  step "ablation: stage 2 without [LOC]"
  train_stage2 stage2_seg_only --seg_only --trainable "$trainable"
  model="$out/mora-tiny-seg-only"
  export_model stage2_seg_only "$out/mora-tiny-stage1" "$model"
  evaluate seg_only groundmore_test.json --pictures 0
fi

step "6/6 what came out"
run python scripts/demo_summary.py "$out"
[ "$mode" = quick ] && echo "(--quick trains far too little to learn: these numbers show only that every part works)"
echo
echo "Look at:  $out/eval/groundmore/report.html  and  $out/eval/referring/report.html"
echo "Curves:   .venv/bin/tensorboard --logdir $out/runs"
echo "Model:    $out/mora-tiny    Questions: $out/data_test/GroundMoRe/groundmore_test.json"
printf 'Time:     %d min %02d s on %d process(es)\n' $(( (SECONDS - begin) / 60 )) $(( (SECONDS - begin) % 60 )) "$processes"
