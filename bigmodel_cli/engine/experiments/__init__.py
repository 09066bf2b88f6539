"""Several runs that answer one question: studies, searches, reproductions, trial runs."""
