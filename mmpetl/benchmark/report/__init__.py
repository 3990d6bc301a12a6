"""One HTML file that shows a benchmark: no server, no network, nothing to install.

    from mmpetl.benchmark.report import write_report
    write_report('work_dirs/bench/mini')   # -> work_dirs/bench/mini/report.html

Records, documentation and pictures go in as data; everything is escaped on the way, so
that a method's name or an error's text stays text.
"""

from mmpetl.benchmark.report.data import page_data
from mmpetl.benchmark.report.page import build_page, write_report
from mmpetl.benchmark.report.pictures import Picture, read_pictures

__all__ = ['Picture', 'build_page', 'page_data', 'read_pictures', 'write_report']
