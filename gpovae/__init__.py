"""Perturb-seq effects and the gene network that explains them."""

import importlib

from .core.cache import place_cache

__version__ = "0.6.0"

place_cache()

# name: (module, attribute; None: the module itself), imported on first use so that `import gpovae`
# stays fast
_lazy = {
    "datasets": ("gpovae.data.datasets", None),
    "check": ("gpovae.data.check", "check"),
    "prepare": ("gpovae.data.prepare", "prepare"),
    "prepare_file": ("gpovae.data.prepare", "prepare_file"),
    "power": ("gpovae.evaluate.power", "power"),
    "GPOVAE": ("gpovae.api", "GPOVAE"),
    "evaluate": ("gpovae.evaluate", None),
    "plots": ("gpovae.plots", None),
    "GpovaeError": ("gpovae.core.errors", "GpovaeError"),
}
__all__ = [*_lazy, "__version__"]


def __getattr__(name):
    if name not in _lazy:
        raise AttributeError(f"module 'gpovae' has no attribute {name!r}")
    module, attribute = _lazy[name]
    value = importlib.import_module(module)
    value = value if attribute is None else getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
