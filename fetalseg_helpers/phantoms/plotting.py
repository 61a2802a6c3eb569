"""What notebook 7 shows and no other: arrays on the polar grid."""

from fetalseg_helpers.plotting import new_figure


def show_maps(maps, titles, labels, columns=3, suptitle="", color_range=(None, None)):
    """Arrays of shape (samples, beams) on the polar grid side by side, the probe at the top, each with its scale.

    `titles` has a title for each map, `labels` what its scale shows, with the unit. `color_range` are the values shown
    black and white, by default each map's own least and greatest.
    """
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure, axes = new_figure(rows, columns, 0.4 + rows * 2.7, suptitle, squeeze=False, sharey=True)
    for axis, values, title, label in zip(axes.flat, maps, titles, labels, strict=True):
        picture = axis.imshow(values, cmap="gray", aspect="auto", interpolation="nearest")
        picture.set_clim(*color_range)
        axis.set(title=title, xlabel="beam")
        figure.colorbar(picture, ax=axis, label=label, location="bottom", aspect=30)
    for axis in axes[:, 0]:
        axis.set_ylabel("sample in depth")
    return figure
