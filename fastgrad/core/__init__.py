"""What every part of fastgrad stands on: backends, checks of arguments, memory, and arrays on a GPU."""
