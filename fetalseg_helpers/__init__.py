"""Helpers for a course that trains and honestly evaluates a U-Net on fetal ultrasound images.

Read them in this order, each beside the notebook of its name:

    workspace       the run folder, errors of one sentence, files that are whole or absent
    loading         1: files, pairs, examinations, the split, the manifest
    preprocessing   2: fill, normalise, resize and back, augment; the data set
    verification    3: every check, and which pairs are used
    unet            4: the network
    training        5: settings, loss, loop, checkpoints
    evaluation      6: predict, cut, Dice and IoU, the mean and its interval
    plotting        the figures of all six
    ellipses        the geometry that phantoms and scores share

Three folders go deeper: `phantoms` (the simulator of notebook 7), `beyond_dice` (the scores of notebook 8 and of the
command `evaluate`) and `running` (stages, papermill, many runs and processes, downloads, widgets). The command line is
`__main__`.
"""

__version__ = "0.2.0"
