"""How good a model is for people whose text it has never seen, beside public baselines."""
