"""What the installed timm says of a network: of those newer than the catalogue, and for the catalogue itself."""

from __future__ import annotations

from pipeline.spec.model_names import Preprocessing
from pipeline.spec.timm_catalogue import PREFIX, TimmModel


def installed_model(name: str) -> TimmModel | None:
    """As timm configures it, not counted; None where timm does not know the name or is not installed."""
    try:
        import timm
    except ImportError:
        return None
    name = name.removeprefix(PREFIX)
    if not timm.is_model(name):
        return None
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:  # of this architecture, but no such tag
        return None
    if cfg is None:
        return None
    if cfg.tag and "." not in name and cfg.has_weights:
        name = f"{name}.{cfg.tag}"
    hub = str(cfg.hf_hub_id or cfg.url or "")
    mean, std = ((part[0], part[1], part[2]) for part in (cfg.mean, cfg.std))
    # two ways are made here: of one that came later, the sharper is nearer
    interpolation = "bilinear" if cfg.interpolation == "bilinear" else "bicubic"
    return TimmModel(
        name, int(cfg.input_size[-1]), bool(cfg.fixed_input_size), Preprocessing(mean, std, interpolation),
        str(cfg.license or ""), hub, None, None,
    )  # fmt: skip
