from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as tv

from pretrain.augmentation import CT, NONE, PAPER
from pretrain.intensity import Intensity, add_noise, draw_intensity, jitter_window, retouch

ABDOMEN = (-175.0, 275.0)


def draws(augmentation, view: int = 0, n: int = 2000, size: int = 224) -> list[Intensity]:
    rng = np.random.default_rng(0)
    return [draw_intensity(augmentation, [ABDOMEN], view, size, rng) for _ in range(n)]


def test_windows_jitter_around_their_preset() -> None:
    rng = np.random.default_rng(0)
    jittered = np.array([jitter_window(ABDOMEN, CT, rng) for _ in range(4000)])
    width = jittered[:, 1] - jittered[:, 0]
    level = jittered.mean(axis=1)
    assert (level.min(), level.max()) == (pytest.approx(50 - 45, abs=0.2), pytest.approx(50 + 45, abs=0.2))
    assert (width.min(), width.max()) == (pytest.approx(450 / 1.3, rel=0.01), pytest.approx(450 * 1.3, rel=0.01))
    assert np.exp(np.log(width).mean()) == pytest.approx(450, rel=0.01)
    assert level.mean() == pytest.approx(50, abs=1.5)


def test_without_jitter_the_window_is_extractions_own() -> None:
    rng = np.random.default_rng(0)
    assert jitter_window((-133.7, 241.3), NONE, rng) == (-133.7, 241.3)


def test_noise_is_white_and_of_the_deviation_asked_for() -> None:
    hu = np.full((256, 256), 40, np.int16)
    noise = add_noise(hu, 20.0, 1) - 40
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0, abs=0.3)
    assert noise.std() == pytest.approx(20, rel=0.01)
    assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] == pytest.approx(0, abs=0.02)
    assert stats.skew(noise.ravel()) == pytest.approx(0, abs=0.05)
    assert stats.kurtosis(noise.ravel()) == pytest.approx(-0.3, abs=0.05)  # of a sum of four uniforms


def test_noise_depends_on_its_seed_alone() -> None:
    hu = np.zeros((20, 30), np.int16)
    assert np.array_equal(add_noise(hu, 5.0, 7), add_noise(hu, 5.0, 7))
    assert not np.array_equal(add_noise(hu, 5.0, 7), add_noise(hu, 5.0, 8))


def test_tone_is_torchvisions() -> None:
    grey = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    brighter = retouch(grey, Intensity((ABDOMEN,), brightness=1.3))
    assert torch.allclose(brighter, tv.adjust_brightness(grey, 1.3), atol=1e-6)
    flatter = retouch(grey, Intensity((ABDOMEN,), contrast=0.7))
    assert torch.allclose(flatter, tv.adjust_contrast(grey, 0.7), atol=1e-6)
    both = Intensity((ABDOMEN,), brightness=1.3, contrast=1.4)
    expected = tv.adjust_contrast(tv.adjust_brightness(grey, 1.3), 1.4)
    assert torch.allclose(retouch(grey, both), expected, atol=1e-6)
    expected = tv.adjust_brightness(tv.adjust_contrast(grey, 1.4), 1.3)
    assert torch.allclose(retouch(grey, replace(both, contrast_first=True)), expected, atol=1e-6)


def test_blur_is_a_gaussian_and_keeps_flat_regions() -> None:
    grey = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = retouch(grey, Intensity((ABDOMEN,), blur_sigma=1.5))
    expected = tv.gaussian_blur(grey, [13, 13], [1.5, 1.5])
    assert torch.allclose(blurred[:, 8:-8, 8:-8], expected[:, 8:-8, 8:-8], atol=2e-3)  # it is cut at 3, not 4.3
    flat = retouch(torch.full((1, 20, 20), 0.3), Intensity((ABDOMEN,), blur_sigma=2.0))
    assert torch.allclose(flat, torch.tensor(0.3))
    stacked = retouch(torch.cat([grey, grey.flip(1)]), Intensity((ABDOMEN,), blur_sigma=1.5))
    assert torch.equal(stacked[0], blurred[0])  # channels do not mix


def test_solarising_inverts_the_bright_half() -> None:
    grey = torch.tensor([[[0.0, 0.4, 0.6, 1.0]]])
    found = retouch(grey, Intensity((ABDOMEN,), solarise=True))
    assert torch.allclose(found, torch.tensor([[[0.0, 0.4, 0.4, 0.0]]]))


def test_values_stay_in_the_unit_range() -> None:
    grey = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    for intensity in draws(PAPER, n=200):
        found = retouch(grey, intensity)
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1


def test_nothing_asked_for_is_nothing_done() -> None:
    grey = torch.rand(1, 8, 8)
    for intensity in draws(NONE, n=50):
        assert intensity.limits == (ABDOMEN,)
        assert intensity.noise_hu == 0
        assert torch.equal(retouch(grey, intensity), grey)


def test_the_papers_two_views_differ_in_blur_and_solarising() -> None:
    first, second, third = (draws(PAPER, view) for view in (0, 1, 2))
    assert np.mean([d.blur_sigma > 0 for d in first]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([d.solarise for d in first]) == pytest.approx(0.2, abs=0.03)
    assert all(d.blur_sigma > 0 and not d.solarise for d in second)
    assert np.mean([d.blur_sigma > 0 for d in third]) == pytest.approx(0.5, abs=0.03)
    toned = [d for d in second if d.brightness != 1]
    assert len(toned) / len(second) == pytest.approx(0.8, abs=0.03)
    assert min(d.brightness for d in toned) == pytest.approx(0.6, abs=0.01)
    assert max(d.contrast for d in toned) == pytest.approx(1.4, abs=0.01)


def test_blur_scales_with_the_view() -> None:
    large, small = draws(PAPER, 1, size=224), draws(PAPER, 1, size=112)
    assert max(d.blur_sigma for d in large) == pytest.approx(2.0, abs=0.01)
    assert [d.blur_sigma for d in small] == pytest.approx([d.blur_sigma / 2 for d in large])


def test_a_probability_changes_nothing_but_what_it_is_for() -> None:
    plain, blurred = draws(CT, n=50), draws(replace(CT, blur_chance=(1.0,)), n=50)
    assert [replace(d, blur_sigma=0) for d in plain] == [replace(d, blur_sigma=0) for d in blurred]
