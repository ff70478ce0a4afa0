"""Derivatives of fields by coordinate and order: what to compute (``plan``), and how (``evaluate``)."""
