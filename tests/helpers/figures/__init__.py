"""Where the figures of the pages come from: a module for each page that has any, by the page's name.

A module has `claims()`, the page's phrases, sentences and table rows with figures in them, made from the files in
benchmarks/results/, and `STATED`, the phrases with numbers that nobody measured (a limit, a default, a specification),
each with the reason. tests/docs/test_figures.py compares both with the page.
"""
