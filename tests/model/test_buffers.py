"""What a model holds beside its weights."""

import warnings

import numpy as np
import torch

from gpovae.model.vae import _add_buffers


def test_arrays_that_may_not_be_written_to():
    "pandas 3 hands them out; torch warns, once a process, of those that it would share."
    size_factor = np.array([True, False, True])
    size_factor.flags.writeable = False
    model = torch.nn.Module()
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _add_buffers(model, 3, torch.arange(3), size_factor)
    finally:
        torch.set_warn_always(before)
    model.size_factor[1] = True
    assert model.size_factor.all() and not size_factor[1]
