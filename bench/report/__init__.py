"""The report: one HTML file that needs nothing else, and every chart of it as a PNG file beside it.

- page: what is told of each scenario, and how; charts: the pictures (matplotlib, of the bench extra)
"""
