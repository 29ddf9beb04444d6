"""Finished cells measured, ranked and selected; the test set predicted and submitted."""
