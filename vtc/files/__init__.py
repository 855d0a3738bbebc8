"""Files and folders that are whole or absent, on every system: written to a temporary name, synced, renamed
(``atomic``, ``folders``); one writer a folder (``lock``); what a folder of weights is known by (``digest``).
Texts of strangers are made harmless by what they go into (``escape``).
"""
