"""What fastpresence costs, beside what plain C costs. `python -m bench list` names the questions."""
