"""Scalar expressions and the code made from them. Knows nothing of tensors, tapes or the table of
operations."""

import time

IMPORTED = time.time()  # before anything else of it
