"""Which pass each layer gets for a size: candidates are tried (``plan``), damage and cost allocated (``allocate``,
``ranks``), the plan is compared with one candidate for all (``check``) and told (``report``); ``ladder`` plans several
sizes.
"""
