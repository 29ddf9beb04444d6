"""Keys of version 0.1 and what they are called now. Dropped in 0.4, with all that reads it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

# where the key stood (without places in lists) -> its name now, in the same section
RENAMED: dict[str, str] = {
    "data.unlabelled": "negatives",
    "data.max_bad_share": "set_aside",
    "data.max_bad_fraction": "set_aside",
    "train.sampling.blanks": "negatives",
    "train.optimizer.lr_backbone": "backbone_lr_factor",
    "train.schedule.final_share": "final_fraction",
    "train.schedule.up_share": "pct_start",
    "train.schedule.start_share": "start_fraction",
    "train.augment.mix_share": "mix_fraction",
    "train.augment.trivial": "trivial_augment",
    "train.augment.erase": "random_erasing",
    "train.augment.erase_area": "random_erasing_area",
    "train.average_flips": "tta_hflip",
    "train.score_px": "eval_image_px",
    "train.feature_views": "cached_views",
    "train.head_first_epochs": "freeze_backbone_epochs",
    "train.best_by": "monitor",
    "train.clip_norm": "clip_grad_norm",
    "train.loss.smoothing": "label_smoothing",
    "train.loss.share": "soft_f1_fraction",
    "run.save_share": "save_fraction",
    "run.resources.side_by_side": "concurrent_cells",
    "grid.together": "share_process",
    "cluster.side_by_side": "concurrent_cells",
}


def renamed(key: Iterable[str | int], known: Collection[str] | None = None) -> str:
    """What to say of a key that was renamed, or lies below one; "" of any other.

    With `known`, the keys of the section it stands in, only where the new name is one of them.
    """
    path = ""
    for part in key:
        if isinstance(part, str):
            path = f"{path}.{part}".lstrip(".")
            new = RENAMED.get(path)
            if new and (known is None or new in known):
                return f"`{part}` is now called `{new}`"
    return ""
