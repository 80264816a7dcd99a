"""From settings to a model: what is refused before a checkpoint is read."""

import pytest

from serve_app import settings as settings_module
from serve_app.engine.loading import load_model
from serve_app.settings import SettingsError


def test_8_bit_caches_are_refused_on_a_cpu() -> None:
    settings = settings_module.from_args({"engine": {"device": "cpu", "kv_cache_dtype": "fp8"}}, environ={})
    with pytest.raises(SettingsError, match=r"engine.kv_cache_dtype: expected a GPU .* for 'fp8', got a CPU"):
        load_model(settings)
