"""Import every head file so that it registers: one line a head."""
# ruff: noqa: F401

import heads.cs_flow
import heads.dual_flow
import heads.f2r
import heads.fast_flow
import heads.gca_flow
import heads.padim
import heads.pair_diff
import heads.pair_flow
import heads.patchcore
