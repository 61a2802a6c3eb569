"""The whole chain on the real data set, short; skipped where it is not at hand."""

import numpy as np
import pandas as pd
import pytest

from fetalseg_helpers import (
    checkpoints,
    evaluation,
    loading,
    prediction,
    preprocessing,
    trainer,
    training,
    verification,
    workspace,
)


@pytest.fixture(scope="module")
def prepared(real_data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("real")
    verification.ensure_verified(run_dir, 96, 64, data=str(real_data))
    return run_dir


def test_every_outline_has_its_image_and_none_is_lost(prepared, real_data):
    outlines = [path for path in real_data.rglob("*_Annotation.png") if "Datasets" not in path.parts]
    manifest = loading.read_manifest(prepared)
    assert len(manifest) == len({path.name for path in outlines})
    assert len(manifest) in (850, 999)
    assert (preprocessing.read_index(prepared).problem == "").all()
    assert len(preprocessing.usable(prepared)) == len(manifest)


def test_no_examination_is_in_two_splits(prepared):
    manifest = loading.read_manifest(prepared)
    assert (manifest.groupby("examination").split.nunique() == 1).all()
    assert set(manifest.split) == set(loading.SPLITS)


def test_the_mended_outlines_are_the_known_ones_and_nothing_else_is_wrong(prepared):
    findings = pd.read_csv(workspace.run_folder(prepared) / "verification.csv")
    assert not (findings.severity == "error").any()
    opened = set(findings.image_id[findings.check == "open_outline"])
    assert {"231_HC", "427_2HC", "977_HC"} <= opened and len(opened) <= 4


def test_a_short_training_beats_the_baselines(prepared):
    """All background scores 0, the mean mask of the training set about 0.8."""
    settings = training.Settings(epochs=4, base_channels=8, depth=4, learning_rate=4e-3)
    trainer.train(prepared, settings)
    network, state = checkpoints.load_network(workspace.run_folder(prepared) / "checkpoint.pt")
    predict = prediction.make_predictor(network, state["canvas"])
    scores = evaluation.score_pairs(predict, evaluation.usable_pairs(prepared))
    train_set = preprocessing.PreparedDataset(prepared, "train")
    test_set = preprocessing.PreparedDataset(prepared, "test")
    mean_mask = np.mean([train_set.masks[row] for row in train_set.index.row], axis=0) >= 0.5
    baseline = np.mean([evaluation.dice_score(mean_mask, test_set.masks[row]) for row in test_set.index.row])
    assert 0 < baseline < scores.dice.mean() - 0.05
