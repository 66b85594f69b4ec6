"""The axes of a setting are those of the recipe (REFERENCE.md: MRL, MLL, MEL)."""

import pytest

from mlembed_core.config.axes import resolve_axes
from mlembed_core.config.grid import Shape, Submodel, resolve_submodel
from mlembed_core.config.settings import MelParams, SettingParams
from mlembed_core.errors import ConfigError, SubmodelError


def test_automatic_axes_of_the_published_0_6b():
    setting = SettingParams(mrl="auto", mll="auto", mel=MelParams(rank=512, min_rank=64, sampled=True))
    axes = resolve_axes("3d", setting, hidden=1024, layers=28)
    assert axes.mrl_dims == (8, 16, 32, 64, 128, 256, 512, 1024)
    assert axes.mll_layers == (1, 2, 4, 8, 16, 24, 28)
    assert axes.mel_ranks == (64, 128, 256, 512)


def test_sizes_that_are_no_powers_of_two_come_last():
    setting = SettingParams(mrl="auto", mll="auto", mel=MelParams(rank=100, min_rank=64, sampled=True))
    axes = resolve_axes("x", setting, hidden=320, layers=8)
    assert axes.mrl_dims == (8, 16, 32, 64, 128, 256, 320)
    assert axes.mll_layers == (1, 2, 4, 8)
    assert axes.mel_ranks == (64, 100)


def test_axes_that_are_off_have_the_full_size_only():
    axes = resolve_axes("baseline", SettingParams(), hidden=256, layers=4)
    assert axes == type(axes)(mrl_dims=(256,), mll_layers=(4,), mel_ranks=None)


def test_a_static_rank_is_one_rank():
    assert resolve_axes("x", SettingParams(mel=MelParams(rank=64)), hidden=256, layers=4).mel_ranks == (64,)


def test_explicit_lists_end_with_the_full_size():
    assert resolve_axes("x", SettingParams(mrl=[64, 16]), hidden=256, layers=4).mrl_dims == (16, 64, 256)
    with pytest.raises(ConfigError, match=r"settings\.x\.mll=5 exceeds the backbone's number of layers 4"):
        resolve_axes("x", SettingParams(mll=[5]), hidden=256, layers=4)


def test_submodels_fill_what_is_not_cut_and_refuse_what_is_not_there():
    shape = Shape(layers=4, dim=256, rank=128, vocab=4000)
    assert resolve_submodel(shape, dim=64) == Submodel(4, 64, 128)
    assert resolve_submodel(shape, dim=64).name == "l4-d64-r128"
    for cut in ({"layers": 5}, {"dim": 0}, {"rank": 129}):
        with pytest.raises(SubmodelError, match="out of range: this model has"):
            resolve_submodel(shape, **cut)
