"""Run folders: how they are written, read and addressed, how a notebook or a sweep of many is run, and the environment.

Nothing here depends on what a run computes.
"""

import sys

# jsonschema, which nbformat imports, would build a grammar of addresses for more than a second; no notebook needs it
sys.modules.setdefault("rfc3987_syntax", None)
