"""Imported first by the process that jobs are forked from: it ends with its service also while it loads the library.

The server of forks looks whether its service lives only once all is loaded, which takes seconds.
"""

from __future__ import annotations

from placement_api.jobs.orphans import ParentWatch

watch = ParentWatch().start()  # until `warm` has loaded all
