"""
What data, evaluation, training and the scripts share: paths, script arguments, FLOP counting, reports, folders for the
Hub.
"""
