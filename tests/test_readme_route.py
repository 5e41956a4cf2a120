"""The README's bare commands, in their order, in a copy of the checkout: only names, sizes and lengths are replaced."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

TRIAL = (
    "--device cpu --precision fp32 --workers 0 --steps_per_epoch 1 --warmup_steps 1 --grad_accumulation_steps 1 "
    "--num_frames 2 --picture_freq 0 --lora_r 4 --lr 1e-3"
)


def blocks(root: Path) -> list[str]:
    """Every command of the README's blocks, joined to one line each, comments dropped."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", (root / "README.md").read_text(), re.S)).replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines())
    return [re.sub(r"\s+", " ", line) for line in lines if line and not line.startswith("#")]


@pytest.fixture
def checkout(project_root, tmp_path):
    """What git holds, and small stand-ins for what the README tells to download."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=project_root, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if not name.startswith("tests/") and (project_root / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(project_root / name, tmp_path / name)
    shutil.copytree(tmp_path / "assets" / "tiny_base", tmp_path / "base")
    sam = {name: value for name, value in load_file(tmp_path / "base" / "model.safetensors").items()}
    torch.save({name[4:]: value for name, value in sam.items() if name.startswith("sam.")}, tmp_path / "sam.pth")
    return tmp_path


def run(checkout: Path, command: str) -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "MASTER"))
    }
    environment.update(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    return done.stdout


def test_every_command_in_its_order(checkout):
    size = "--num_videos 3 --num_refytvos 2 --num_mevis 1 --height 48 --width 64"
    run(checkout, f"python -m datasets.synthetic --out ./dataset --seed 1 {size}")
    run(checkout, f"python -m datasets.synthetic --out ./unseen --seed 2 {size} --split test --corpora groundmore")
    (checkout / "groundmore_videos").symlink_to("unseen/GroundMoRe/groundmore_videos")
    shutil.copy(checkout / "unseen" / "GroundMoRe" / "groundmore_test.json", checkout)
    video = sorted(path.name for path in (checkout / "groundmore_videos").iterdir())[0]
    names = {"xinlai/LISA-7B-v1": "base", "/path/to/sam_vit_h_4b8939.pth": "sam.pth", "VIDEO": video, "ID": "0"}
    ran = []
    for command in blocks(checkout):
        if command.startswith(("bash scripts/", "pip ")):
            continue  # the demo and the tests themselves
        for name, stand_in in names.items():
            command = re.sub(rf"(?<=[ =]){re.escape(name)}(?= |$)", stand_in, command)
        if "train_ds.py" in command:
            command += f" {TRIAL}"
        if "merge_lora" in command:
            export = command
        if "evaluate_groundmore.py" in command:
            # The README evaluates a released model; here it is what stage 2 has just trained.
            own = export.replace("--version base", "--version exported/stage1").replace("runs/stage1", "runs/stage2")
            run(checkout, own.replace("exported/stage1 --conv", "checkpoints/mora-ft-lisa7b --conv").replace(
                "--seg_only", "--loc_mode global"))  # fmt: skip
            command += " --num_frames 3 --device cpu --limit 2"
        if "evaluation.compare" in command or "overlay_video" in command:
            for copy in ("mora-a", "mora-b"):
                shutil.copytree(checkout / "outputs/mora-ft-lisa7b", checkout / "outputs" / copy, dirs_exist_ok=True)
        run(checkout, command)
        ran.append(command)
    programs = " ".join(ran)
    for program in ("--exp_name stage1", "merge_lora", "--exp_name stage2", "evaluate_groundmore.py", "compare",
                    "overlay_video", "doctor mevis"):  # fmt: skip
        assert program in programs
    assert (checkout / "results" / "mora-ft-lisa7b-f20.txt").is_file()
    assert (checkout / "outputs" / "mora-ft-lisa7b" / "report.html").is_file()
    assert list(checkout.rglob("*.mp4"))
