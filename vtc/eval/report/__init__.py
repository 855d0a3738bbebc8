"""Figures to look at: tables, plots, overlays, the page and files for papers; ``write`` makes them all of one run.
``catalogue`` lists methods and benchmarks, ``robustness`` what cells lose under corruptions.
"""
