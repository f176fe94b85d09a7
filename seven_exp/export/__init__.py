"""A finished run's model as files for others, each read again and compared before it counts."""

from seven_exp.export.formats import FORMATS, ExportError, Files, check_format

__all__ = ["FORMATS", "ExportError", "Files", "check_format"]
