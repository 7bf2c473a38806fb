"""Tables of the comparison, from the rows of its runs."""


def report(rows):
    return ""
