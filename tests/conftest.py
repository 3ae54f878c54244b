"""Settings for every test."""

import os

from hypothesis import settings

# Set before transformers is imported: a test must not ask the network for a model.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

# The first example of a test may pay for an import, so no deadline; in CI the same
# examples every time, so that a red run says something about the change it tests.
settings.register_profile("tinygpt", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tinygpt")
