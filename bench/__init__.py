"""What fastpresence costs, beside what others cost. `python -m bench list` names the questions.

- load: the scenarios; rivals: other servers; micro: single functions; guard: instructions of hot paths
- outcome, results, machine: what is kept of a run; noise, compare, fit, histogram: what can be said of it; report
- stages, profiling: where the time goes; progress: how far it is
"""
