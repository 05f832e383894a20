"""What a method says of given answers: log-likelihoods and multiple choice."""
