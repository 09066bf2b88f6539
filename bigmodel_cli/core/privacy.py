"""What to say of private training wherever it is told: in a run, in its report and in a model card."""

NOT_ACCOUNTED = (
    "not accounted for: the val split, statistics of train (normalisation, vocabulary), choices made by looking at "
    "results, and the train loss that is shown and logged"
)
