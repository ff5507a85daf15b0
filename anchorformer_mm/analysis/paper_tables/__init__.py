"""The tables of arXiv 2505.16463 beside what is counted here.

One module for each table says which model stands for which row, with what
the paper prints of it. The others count, and write the page, its JSON and
its plots.
"""
