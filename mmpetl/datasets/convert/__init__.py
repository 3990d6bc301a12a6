"""From official archives to the layouts that the data sets are read in.

Every converter can be stopped and called again: a file that is there with the same
content is skipped, a file gets its name when it is whole and has been opened, and what
makes a data set usable (its lists, or its folder's name) comes last. Archives are read
member by member and never unpacked as they say; nothing that an archive holds can be
written outside the target.
"""
