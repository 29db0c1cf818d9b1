"""What happens on the server: the state of the model and the step that changes it."""
