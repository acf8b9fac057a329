"""Learning: whole models trained on tokens as a recipe's adaptation says, and the controls that go with them."""
