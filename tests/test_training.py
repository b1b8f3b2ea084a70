"""Training: a killed run ends as an unbroken one, and several ranks have the gradient of one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from test_batches import image_files
from torch import distributed

from giou_repro import LOSSES, detectors, loss
from giou_repro.__main__ import main
from giou_repro.data import datasets
from giou_repro.detectors.box_loss import BoxLoss
from giou_repro.runs import store
from giou_repro.training import average_precision, batches, checkpoint, loop, ranks
from giou_repro.training import detections as detections_file
from giou_repro.training.loop import configure

SMALL = {
    "scale": "smoke",
    "image_size": 64,
    "images": 16,
    "val_images": 8,
    "batch_size": 8,
    "epochs": 3,
    "evaluations": 0,
    "precision": "float32",
}


@pytest.mark.parametrize(
    ("progress", "cosine", "step"),
    [(0.025, 0.5, 0.5), (0.05, 1, 1), (0.525, 0.505, 1), (0.85, None, 0.1), (0.95, None, 0.01), (1, 0.01, 0.01)],
)
def test_the_learning_rate_rises_then_falls(progress, cosine, step):
    for schedule, expected in (("cosine", cosine), ("step", step)):
        found = checkpoint.rate(progress, SimpleNamespace(warmup=0.05, schedule=schedule))
        assert expected is None or found == pytest.approx(expected)


def test_none_means_the_scales_own_and_a_folder_keeps_all_its_images():
    assert configure(scale="laptop").images == 400
    assert configure(scale="laptop", images=5, weight=None).images == 5
    assert configure(scale="laptop", dataset="some/folder").images is None


def test_importing_the_configuration_brings_no_torch():
    code = "import sys, giou_repro.training.config; print({'torch', 'torchvision'} & sys.modules.keys())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"detector": "yolo3"}, "yolov3"),
        ({"loss": "gio"}, "giou"),
        ({"epochs": 0}, "epochs"),
        ({"epoch": 1}, "epoch"),
        ({"image_size": 100}, "multiple of 32"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"cells_away": 1, "detector": "fcos"}, "cells_away is of yolov3"),
        ({"darknet_chain": True, "detector": "fcos"}, "darknet_chain is of yolov3"),
        ({"frozen_views": 2}, "a backbone with weights"),
        ({"frozen_views": 2, "detector": "fcos", "backbone": "efficientnet_lite0"}, "yolov3"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(given, named):
    with pytest.raises(ValueError, match=named):
        configure(**given)


@pytest.fixture
def run(tmp_path):
    return store.open_run("05_train_detector", tmp_path, {})


def test_what_cannot_be_trained_on_is_refused_before_a_run_begins(tmp_path, capsys):
    folder, results, sweep = image_files(tmp_path / "set", (1, 2, 3)), tmp_path / "results", tmp_path / "sweep.yaml"
    sweep.write_text(json.dumps({"jobs": [{"notebooks": "05_train_detector", "parameters": {"dataset": str(folder)}}]}))
    data = ["-p", "dataset", str(folder), "--results", str(results)]
    for words in (
        ["train", *data],
        ["run", "05_train_detector", *data],
        ["sweep", str(sweep), "--results", str(results)],
    ):
        assert main(words) == 2
        assert (
            'no split \'train\'; it has all; or divide it: train_split "all[:80%]", val_split "all[80%:]"'
            in capsys.readouterr().err
        )
    assert main(["train", *data, "-p", "train_split", "all", "-p", "val_split", "all[50%:51%]"]) == 2
    assert "holds none of the 3 images of 'all'" in capsys.readouterr().err
    assert not results.exists()


def test_validation_images_that_are_trained_on_are_warned_of_and_recorded(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GIOU_REPRO_CACHE", str(tmp_path / "cache"))
    data = {
        "dataset": str(image_files(tmp_path / "set", (1, 2, 3, 4))),
        "train_split": "all[:75%]",
        "val_split": "all[50%:]",
    }
    loop.train(configure(**SMALL | data | {"batch_size": 2, "epochs": 1}), run)
    assert "WARNING: 1 of 2 images of all[50%:] are images of all[:75%] too.\nWARNING: " in capsys.readouterr().err
    assert run.record["data"]["all[50%:]"]["also_trained_on"] == 1


@pytest.mark.parametrize(("val_split", "both"), [("val", 0), ("train", 8)])
def test_generated_splits_have_no_scene_in_common(val_split, both):
    config = configure(**SMALL, val_split=val_split)
    assert loop._in_both(config, *loop.open_sets(config)) == both


def test_a_few_epochs_lower_the_loss_and_fill_the_tables(run):
    given = {"epochs": 6, "evaluations": 1, "learning_rate": 0.005, "weight": 1.0, "clip": 4.0}
    trained = loop.train(configure(**SMALL | given), run)
    assert trained.curves.loss.iloc[-1] < 0.8 * trained.curves.loss.iloc[0]
    assert trained.curves.AP.notna().tolist() == [False, False, True, False, False, True]
    assert set(trained.evaluation) >= {
        "dataset",
        "detector",
        "loss",
        "weight",
        "seed",
        "AP",
        "AP50",
        "AP75",
        "AP_giou",
        "AP75_giou",
        "mean_iou",
        "disjoint",
    }
    again = average_precision.evaluate(*detections_file.read(run.folder / "detections.npz"))
    assert again.summary == {name: trained.evaluation[name].item() for name in again.summary}
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert trained.evaluation.val_positives_disjoint.item() < 0.1 < trained.evaluation.val_positives_iou.item() < 1
    clipped = [line["gradient"] > 4 for line in lines]
    assert trained.evaluation.clipped.item() == pytest.approx(np.mean(clipped)) and 0 < sum(clipped) < 12
    assert trained.curves.clipped.tolist() == [np.mean(clipped[i : i + 2]) for i in range(0, 12, 2)]
    assert set(lines[0]) >= {"loss", "box", "mean_iou", "disjoint", "images_per_second"}


def test_weights_are_averaged_by_torchs_rule_and_whole_numbers_are_not():
    model = torch.nn.Linear(1, 1, bias=False)
    model.register_buffer("places", torch.arange(300))
    model.box_loss = BoxLoss("giou")
    training = checkpoint.Training(model, configure(ema=0.9))

    def forward(images, targets):
        return {"box": model(images).square().sum()}, {}

    expected = None
    for step in range(100):
        training.step(forward, torch.ones(1, 1), None, step / 100)
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0
        expected = model.weight.item() if expected is None else decay * expected + (1 - decay) * model.weight.item()
    assert training.average.module.weight.item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(training.average.module.places, torch.arange(300))


def test_ap_is_of_float32_whatever_the_precision_of_the_training():
    scenes = batches.pack(datasets.load("shapes", "val", images=2, image_size=64), 64)
    torch.manual_seed(0)
    model = detectors.build("yolov3", 3, image_size=64)
    for head in model.neck.heads:
        torch.nn.init.zeros_(head[-1].bias)  # an object everywhere
    found = [
        loop.detect(model, scenes, configure(precision=precision), torch.device("cpu"))
        for precision in ("float32", "bfloat16")
    ]
    for ours, theirs in zip(*found, strict=True):
        assert len(ours["scores"]) and torch.equal(ours["scores"], theirs["scores"])


def test_a_frozen_backbone_keeps_its_weights_and_its_head_learns(run, tmp_path):
    weights = torchvision.models.mobilenet_v3_small().state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    given = {
        "backbone": f"mobilenet_v3_small:{tmp_path / 'weights.pth'}",
        "frozen_views": 2,
        "epochs": 6,
        "learning_rate": 0.005,
        "weight": 1.0,
    }
    trained = loop.train(configure(**SMALL | given), run)
    kept = trained.model.backbone.layers.state_dict()
    assert all(torch.equal(tensor, weights[f"features.{name}"]) for name, tensor in kept.items())
    assert trained.curves.loss.iloc[-1] < 0.9 * trained.curves.loss.iloc[0]


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
def test_every_detector_trains_and_is_evaluated(run, detector):
    trained = loop.train(configure(**SMALL | {"epochs": 1, "images": 8, "val_images": 4, "detector": detector}), run)
    assert trained.evaluation.detector.item() == detector and trained.evaluation.AP.notna().item()
    assert torch.isfinite(torch.tensor(trained.curves[["loss", "box", "classification"]].to_numpy(dtype=float))).all()
    assert set(trained.detections[0]) == {"boxes", "scores", "labels"}


def test_a_loss_that_is_not_finite_stops_with_the_images_it_saw(run):
    @loss("broken_for_test", label="Broken")
    def broken(pred, target):
        return (pred - target).sum(-1) * float("nan")

    try:
        with pytest.raises(loop.TrainingError, match=r"step 0: .*box.* not finite for images \[\d+"):
            loop.train(configure(**SMALL, loss="broken_for_test"), run)
    finally:
        del LOSSES["broken_for_test"]


def test_a_checkpoint_of_another_configuration_is_refused(run):
    loop.train(configure(**SMALL | {"epochs": 1, "loss": "giou"}), run)
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt is of a training with loss 'giou', not 'iou'; train in a new run folder"
    ):
        loop.train(configure(**SMALL | {"epochs": 1, "loss": "iou"}), run)


def command(results, *more, prefix=()):
    words = [part for name, value in SMALL.items() if name != "scale" for part in ("-p", name, str(value))]
    return [
        sys.executable,
        *prefix,
        "-m",
        "giou_repro",
        "train",
        "--scale",
        "smoke",
        "--results",
        str(results),
        *words,
        *more,
    ]


def started(words, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def wait_for(results, name, seconds=120):
    """The run folder under `results` once it holds a file `name`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := list(results.glob(f"*/*/{name}")):
            return found[0].parent
        time.sleep(0.02)
    raise AssertionError(f"no {name} under {results} after {seconds} s")


def evaluation(results):
    [path] = results.glob("05_train_detector/*/evaluation.csv")  # one run, not two
    folder = path.parent
    assert json.loads((folder / "run.json").read_text())["status"] == "complete"
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    return pd.read_csv(folder / "evaluation.csv").drop(columns="images_per_second"), pd.read_csv(folder / "curves.csv")


def test_a_killed_run_resumes_and_ends_as_an_unbroken_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = started(command(whole))
    process = started(command(broken))
    folder = wait_for(broken, "checkpoint.pt")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    resumed = started(command(broken))
    said = resumed.communicate()[0]
    assert resumed.returncode == 0, said
    done = int(re.search(rf"resumed in {re.escape(str(folder))}, after epoch (\d) of 3\n", said)[1])
    assert re.findall(r"epoch (\d) of 3: loss", said) == [str(epoch) for epoch in range(done + 1, 4)]
    assert store.Run(folder).record["resumed_after_epoch"] == done
    assert unbroken.wait() == 0, unbroken.stdout.read()
    for ours, theirs in zip(evaluation(whole), evaluation(broken), strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    again = started(command(broken))
    assert again.wait() == 0 and "complete already" in again.stdout.read()


def test_two_ranks_train_and_survive_the_death_of_one(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3")
    words = command(tmp_path)
    process = started([words[0], *torchrun, *words[1:]])
    wait_for(tmp_path, "checkpoint.pt")
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    assert process.wait() == 0, process.stdout.read()
    row, curves = evaluation(tmp_path)
    assert curves.epoch.tolist() == [1, 2, 3] and row.AP.notna().all()


# ---- several ranks


def crowded(*counts):
    """Images with so many true boxes each, of 12 x 12 pixels, one beside the other."""
    corners = torch.tensor([[x, y] for y in range(0, 60, 16) for x in range(0, 60, 16)]).float()
    images = torch.rand(len(counts), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return images, [{"boxes": torch.cat([corners, corners + 12], 1)[:n], "labels": torch.arange(n) % 3} for n in counts]


def gradient(detector, counts, rank=0, world=1):
    """Every parameter's gradient after one step of `world` ranks on images with `counts` true boxes."""
    torch.manual_seed(0)
    model = detectors.build(detector, 3, "giou", image_size=64, backbone="tiny").train()
    for layer in model.modules():  # statistics of a batch are each rank's own
        layer.train(not isinstance(layer, torch.nn.BatchNorm2d))
    images, targets = crowded(*counts)
    mine = slice(rank, None, world) if rank < len(counts) else slice(1)
    forward = ranks.forward_of(model, configure(precision="float32"), world, torch.device("cpu"))
    losses, _ = forward(images[mine], targets[mine], counted=rank < len(counts))
    sum(losses.values()).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


CROWDS = {"yolov3": (1, 9), "fcos": (1, 9), "retinanet": (1, 2, 3), "yolov3 ": (9,)}


def of_two_ranks(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    gradients = {name: gradient(name.strip(), counts, rank, 2) for name, counts in CROWDS.items()}
    own = (
        ({"box": torch.tensor(1.0)}, {"samples": torch.tensor(1.0)}),
        ({"box": torch.tensor(2.0)}, {"samples": torch.tensor(9.0)}),
    )
    losses, _ = ranks.shares(*own[rank], {"box": "samples"}, counted=True)
    torch.save((gradients, losses["box"]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_have_the_gradient_of_one_process(tmp_path):
    """1 positive on a rank and 9 on the other, unlike numbers of images, and a rank without an image."""
    torch.multiprocessing.spawn(of_two_ranks, (str(tmp_path),), nprocs=2)
    (gradients, first), (_, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, counts in CROWDS.items():
        expected = gradient(name.strip(), counts)
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert (first + second) / 2 == pytest.approx((1 * 1 + 9 * 2) / 10)  # means of 1 and 9 samples


def test_three_ranks_finish_a_batch_of_two_images_and_log_all_of_it(tmp_path):
    small = {"images": 6, "batch_size": 4, "epochs": 1, "augment": False}
    words = command(tmp_path, *(part for name, value in small.items() for part in ("-p", name, json.dumps(value))))
    process = started([words[0], "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", *words[1:]])
    said = process.communicate()[0]
    assert process.returncode == 0, said
    [path] = tmp_path.glob("*/*/metrics.jsonl")
    scenes = datasets.load("shapes", "train", images=6, image_size=64)
    assert sum(json.loads(line)["positives"] for line in path.read_text().splitlines()) == sum(
        len(scenes[i][1]["labels"]) for i in range(6)
    )
