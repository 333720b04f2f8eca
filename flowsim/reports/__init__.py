"""A run as one self-contained HTML page."""

from flowsim.reports.contents import laws_of
from flowsim.reports.page import check_name, report

__all__ = ["check_name", "laws_of", "report"]
