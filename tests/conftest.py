"""Settings of every test."""

import os

from hypothesis import settings

# Hypothesis draws other examples on every run, so a run may find what the last one missed; what has to pass before a
# change lands (ci/) draws the same ones each time, so that it fails for what was changed only.
settings.register_profile("fixed", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
