"""Cases, covariates, splits, joints, requests, and the phantom cohort."""
