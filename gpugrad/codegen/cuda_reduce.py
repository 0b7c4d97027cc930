def sum_parts(parts, dtype):
    return parts.sum(axis=0).astype(dtype)
