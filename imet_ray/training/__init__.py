"""One trial: loss, optimizer, schedule, the loop over epochs, validation."""
