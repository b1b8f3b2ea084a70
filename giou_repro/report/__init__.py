"""What all runs say together: the claims with verdicts, the page, published runs and their verification."""
