"""Import every head file so that it registers: one line a head."""

import heads.cs_flow
import heads.gca_flow  # noqa: F401
import heads.patchcore  # noqa: F401
