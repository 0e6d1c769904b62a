"""Settings that must be in force before any test imports torch."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
