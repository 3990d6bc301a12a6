"""One backbone class per file, named ``<package>_<backbone>.py``.

A file is read when a backbone of its package asks for its site map.
"""
