"""Where arrays live and how kernels are launched. No operation is named here."""
