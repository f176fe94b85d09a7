"""Exports a finished run's model to other formats; each file is read again and verified."""

from seven_exp.export.formats import FORMATS, ExportError, Files, check_format

__all__ = ["FORMATS", "ExportError", "Files", "check_format"]
