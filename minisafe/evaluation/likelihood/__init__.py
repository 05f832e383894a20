"""A method's scores for given answers: log-likelihoods and multiple choice."""
