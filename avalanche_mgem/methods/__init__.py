"""What can be compared: methods by name, their settings, and how they are combined."""
