"""Our numbers compared with published ones and closed forms: each module has `rows()` for one publication."""
