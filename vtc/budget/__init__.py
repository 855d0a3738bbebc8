"""How many tokens each picture may cost. ``spend``: from the mean over a run to a picture's own budget, by how busy it
is. ``schedule``: from a picture's layer-averaged budget to the tokens that each stage keeps; ``layer_budget``: that
each layer keeps.
"""
