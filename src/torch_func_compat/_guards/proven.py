from __future__ import annotations


def unproven(pairs):
    return {name for name, _ in pairs}
