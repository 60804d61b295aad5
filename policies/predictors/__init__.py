"""policies/predictors."""
